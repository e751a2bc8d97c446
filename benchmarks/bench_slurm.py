"""Handing over to Slurm and running there, beside bare submitit, bare sbatch and bare arrays.

    python benchmarks/bench_slurm.py [handover] [chain] [makespan] [element] [status]

Needs a cluster (`tests/slurm_cluster up` starts one on this machine) and asks nothing of it that
lasts: what is only handed over is held, and cancelled. Every figure stands beside its floor, taken
in the same run. Targets: 1,000 independent elements at most 3 times submitit's map_array; an
unfusable 3-step chain of 1,000 points at most 3 times as many bare sbatch calls; a fusable one in
as few arrays as MaxArraySize allows; makespan of 50 x 3 at most 1.3 times (fused) and 1.6 times
(in chunks) a bare array; start-up in an element at most 14 times `python -c pass`; `status` of
1,000 elements under 1 s beyond start-up, with at most 2 scheduler calls.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import submitit
from projects import REPOSITORY, median, nexa, timed

POINTS, MAKESPAN_POINTS, SLEEP_S = 1000, 50, 0.2
HOLD = {"slurm": {"extra": {"hold": True}}}
CLUSTER = "name: {name}\nmin_poll_interval_s: 0.2\nlogin_policy: allow\nmax_array_size: 1001\n"
POLICY = "advance_job: {enabled: false}\ndefaults: {timeout_min: 10}\n"


def main() -> None:
    """Run the parts that are named, or all of them."""
    os.environ["PYTHONPATH"] = str(REPOSITORY)
    parts = {
        "handover": handover,
        "chain": chain,
        "makespan": makespan,
        "element": element,
        "status": status,
    }
    for name in sys.argv[1:] or parts:
        # On the disk that the project is on: /tmp is not shared on a real cluster.
        with tempfile.TemporaryDirectory(dir=".") as folder:
            os.environ["XDG_CACHE_HOME"] = str(Path(folder, "cache").absolute())
            parts[name](new_project(Path(folder).absolute()))


def new_project(root: Path) -> Path:
    """Make `root` a project that knows its cluster."""
    name = asked("scontrol", "show", "config")
    found = re.search(r"^ClusterName\s*=\s*(\S+)", name, re.MULTILINE)
    assert found is not None
    for path, text in (
        (f"configs/cluster/{found[1]}.yaml", CLUSTER.format(name=found[1])),
        ("configs/scheduler/slurm.yaml", POLICY),
        ("nexa.yaml", ""),
    ):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


def write(project: Path, steps: list[dict[str, Any]]) -> str:
    """Write a pipeline of `steps` and return its file."""
    (project / "many.yaml").write_text(json.dumps({"pipeline": {"name": "many", "steps": steps}}))
    return "many.yaml"


def step(name: str, command: str, after: list[str], **resources: Any) -> dict[str, Any]:
    """Return a step; its name is in the key, so that no two share a result."""
    params = {"command": command, "name": name}
    fields = {"uses": "runners.command", "after": after, "params": params}
    return {"id": name, **fields, "resources": resources}


def chains(points: int, command: str, *, fusable: bool, **resources: Any) -> list[dict[str, Any]]:
    """Return `points` chains of three steps, of which the middle one may ask for something else."""
    steps = []
    for n in range(points):
        other = {} if fusable else {"signal_delay_s": 25}
        steps += [
            step(f"a{n}", command, [], **resources),
            step(f"b{n}", command, [f"a{n}"], **{**resources, **other}),
            step(f"c{n}", command, [f"b{n}"], **resources),
        ]
    return steps


def handover(project: Path) -> None:
    """1,000 independent elements, beside submitit's own map_array."""
    file = write(project, [step(f"s{n}", ":", [], **HOLD) for n in range(POINTS)])
    start = timed(nexa("plan", file, "--scheduler", "slurm"), project).wall_s
    ours = timed(nexa("run", file, "--scheduler", "slurm"), project).wall_s
    cancel(project)
    floor = submitit_s(project)
    print(f"{POINTS} independent elements, handed over (s)")
    print(f"  submitit's map_array              {floor:6.2f}")
    print(f"  nexa-hpc plan                     {start:6.2f}")
    print(f"  nexa-hpc run                      {ours:6.2f}")
    beyond = (ours - start) / floor
    print(f"  beyond planning, times submitit   {beyond:6.2f}   (target at most 3 and start-up)")


def submitit_s(project: Path) -> float:
    """Return how long submitit takes for an array of as many calls of `print`."""
    began = time.perf_counter()
    executor = submitit.SlurmExecutor(project / "bare/%A")
    executor.update_parameters(time=10, additional_parameters={"hold": True})
    jobs = executor.map_array(print, [str(n) for n in range(POINTS)])
    took = time.perf_counter() - began
    asked("scancel", jobs[0].job_id.partition("_")[0])
    return took


def chain(project: Path) -> None:
    """3 x 1,000 steps: in chunks that follow each other, beside bare sbatch calls; and fused."""
    file = write(project, chains(POINTS, ":", fusable=False, **HOLD))
    start = timed(nexa("plan", file, "--scheduler", "slurm"), project).wall_s
    ours = timed(nexa("run", file, "--scheduler", "slurm"), project).wall_s
    calls = len(list(project.glob(".nexa_state/many/runs/many-1/batches/*.answer.json")))
    cancel(project)
    floor = sbatch_s(project, calls)
    print(f"unfusable chain of 3 x {POINTS}, {calls} sbatch calls (s)")
    print(f"  as many bare sbatch calls         {floor:6.2f}")
    print(f"  nexa-hpc plan, run                {start:6.2f} {ours:6.2f}")
    ratio = (ours - start) / floor
    print(f"  beyond planning, times bare       {ratio:6.2f}   (target at most 3)")
    file = write(project, chains(POINTS, ":", fusable=True, **HOLD))
    plan = json.loads(asked(*nexa("plan", file, "--scheduler", "slurm", "--json"), cwd=project))
    print(
        f"fusable chain of 3 x {POINTS}: {len(plan['arrays'])} sbatch calls (target: as few arrays"
    )
    print("  as MaxArraySize, 1001 here, allows)")


def sbatch_s(project: Path, calls: int) -> float:
    """Return how long `calls` bare submissions of held arrays of ten take."""
    script = project / "bare.sh"
    script.write_text("#!/bin/sh\n#SBATCH --hold --array=0-9 --time=10\n:\n")
    began = time.perf_counter()
    jobs = [asked("sbatch", "--parsable", str(script)).strip() for _ in range(calls)]
    took = time.perf_counter() - began
    asked("scancel", *jobs)
    return took


def makespan(project: Path) -> None:
    """50 x 3 steps of 0.2 s, from the call until the last has ended."""
    command = f"sleep {SLEEP_S}"
    for fusable, target in ((True, 1.3), (False, 1.6)):
        file = write(project, chains(MAKESPAN_POINTS, command, fusable=fusable, timeout_min=1))
        began = time.perf_counter()
        asked(*nexa("run", file, "--scheduler", "slurm"), cwd=project)
        await_empty(project)
        ours = time.perf_counter() - began
        ended = list(project.glob(".nexa_state/records/*/*/*.end.json"))
        floor = bare_makespan(project, fusable=fusable)
        kind = "fused" if fusable else "in chunks"
        print(f"makespan of {MAKESPAN_POINTS} x 3 steps of {command}, {kind} (s)")
        print(f"  bare array                        {floor:6.2f}")
        print(f"  nexa-hpc, {len(ended):3} steps ended        {ours:6.2f}")
        print(f"  times bare                        {ours / floor:6.2f}   (target {target})")
        asked("rm", "-rf", ".nexa_state", "artifacts", cwd=project)


def bare_makespan(project: Path, *, fusable: bool) -> float:
    """Return the makespan of a bare array whose elements import submitit once, and start three
    light interpreters that sleep; or of three bare arrays, in chunks of ten, one after another.
    """
    python = sys.executable
    light = f"{python} -c 'import time; time.sleep({SLEEP_S})'"
    load = f"{python} -c 'import submitit'"
    began = time.perf_counter()
    if fusable:
        sbatch(project, "\n".join([load, light, light, light]), MAKESPAN_POINTS)
    else:
        for _ in range(MAKESPAN_POINTS // 10):
            before = None
            for _ in range(3):
                before = sbatch(project, f"{load}\n{light}", 10, before)
    await_empty(project)
    return time.perf_counter() - began


def sbatch(project: Path, text: str, width: int, before: str | None = None) -> str:
    """Submit a bare array of `width` elements that run `text`, and return its id."""
    script = project / "bare.sh"
    script.write_text(f"#!/bin/bash\n#SBATCH --output=/dev/null --time=1\n{text}\n")
    wait = [f"--dependency=aftercorr:{before}"] if before else []
    array = f"--array=0-{width - 1}"
    return asked("sbatch", "--parsable", array, *wait, str(script), cwd=project).strip()


def await_empty(project: Path) -> None:
    """Return when no job that was submitted from `project` waits or runs."""
    states = "--states=pending,running,completing"
    while str(project) in asked("squeue", "--me", "--noheader", states, "--format=%Z").split():
        time.sleep(0.05)


def element(project: Path) -> None:
    """From the start of Python in an element to the first line of the handler."""
    (project / "first.py").write_text(
        "import os, time\n"
        "def run(out_dir):\n"
        "    ticks = int(open('/proc/self/stat').read().rpartition(')')[2].split()[19])\n"
        "    pid = os.getppid()\n"
        "    began = int(open(f'/proc/{pid}/stat').read().rpartition(')')[2].split()[19])\n"
        "    now = time.clock_gettime(time.CLOCK_BOOTTIME)\n"
        "    began_s = began / os.sysconf('SC_CLK_TCK')\n"
        "    (out_dir / 'took').write_text(str(now - began_s))\n"
    )
    steps = [
        {
            "id": f"s{n}",
            "uses": "first:run",
            "after": [],
            "params": {"n": n},
            "out": f"out/{n}",
            "resources": {"array_parallelism": 1},
        }
        for n in range(5)
    ]
    asked(*nexa("run", write(project, steps), "--scheduler", "slurm"), cwd=project)
    await_empty(project)
    took = median([float((project / f"out/{n}/took").read_text()) for n in range(5)])
    bare = [sys.executable, "-c", "pass"]
    floor = median([timed(bare, project).wall_s for _ in range(11)])
    load = [sys.executable, "-c", "import submitit"]
    submitit_alone = median([timed(load, project).wall_s for _ in range(11)])
    print("start-up in an element, until the handler is entered (ms)")
    print(f"  python -c pass                    {1000 * floor:6.1f}")
    print(f"  python -c 'import submitit'       {1000 * submitit_alone:6.1f}")
    print(f"  ours (clock ticks of 10 ms)       {1000 * took:6.1f}")
    print(f"  times python -c pass              {took / floor:6.1f}   (target at most 14)")


def status(project: Path) -> None:
    """`status` of 1,000 elements, handed over and held."""
    file = write(project, [step(f"s{n}", ":", [], **HOLD) for n in range(POINTS)])
    asked(*nexa("run", file, "--scheduler", "slurm"), cwd=project)
    start = median([timed(nexa("--help"), project).wall_s for _ in range(5)])
    took = median([timed(nexa("status"), project).wall_s for _ in range(5)])
    time.sleep(0.5)
    told = json.loads(asked(*nexa("status", "--json"), cwd=project))
    cancel(project)
    print(f"status of {POINTS} elements (s)")
    print(f"  nexa-hpc --help                   {start:6.2f}")
    print(f"  nexa-hpc status                   {took:6.2f}   (target: 1 s more)")
    print(f"  scheduler calls                   {told['scheduler_calls']}   (target at most 2)")


def cancel(project: Path) -> None:
    """Cancel the newest run."""
    asked(*nexa("cancel"), cwd=project)


def asked(*command: str, cwd: Path | None = None) -> str:
    """Return what a command prints; it must succeed."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
