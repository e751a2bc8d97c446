"""200 independent no-op steps, beside the floor: as many process spawns and fsynced publishes.

    python benchmarks/bench_steps.py [STEPS]

A step leaves one empty file. The floor spawns the same shell for the same file and publishes it as
anything that keeps results must: file, meta.json and COMPLETE each fsynced, then their folder, a
rename, and the folder above fsynced. What nexa_hpc adds is keys, claims, records, digests and the
start of Python. Both run in turn, on the same disk, each round in new folders that are removed at
the end: where inodes have just been freed, some filesystems look for new ones slowly. Target: at
most 1.8 times the floor.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from projects import median, nexa, timed, write_pipeline

ROUNDS = 5
COMMAND = ': > "$OUT/done"'


def main() -> None:
    """Print both times per step, and their ratio."""
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    ours, floors, starts = [], [], []
    with tempfile.TemporaryDirectory(dir=".") as folder:
        for number in range(ROUNDS):
            project = Path(folder, f"project-{number}")
            project.mkdir()
            file = write_pipeline(project, steps, command=COMMAND)
            starts.append(timed(nexa("plan", file.name), project).wall_s)
            floors.append(floor(Path(folder, f"floor-{number}"), steps))
            ours.append(timed(nexa("run", file.name), project).wall_s)
    print(f"{steps} no-op steps, median of {ROUNDS}, ms a step")
    print(f"  floor (spawn, 3 files, 5 fsyncs, rename)   {1000 * median(floors) / steps:6.2f}")
    print(f"  nexa-hpc run, whole process                {1000 * median(ours) / steps:6.2f}")
    print(f"  the same beyond start and planning         {_beyond(ours, starts, steps):6.2f}")
    whole = [mine / bare for mine, bare in zip(ours, floors, strict=True)]
    beyond = [(mine - start) / bare for mine, start, bare in zip(ours, starts, floors, strict=True)]
    print(
        f"  ratio to the floor, round by round: median {median(whole):.2f}, "
        f"beyond start {median(beyond):.2f} (target at most 1.8)"
    )


def _beyond(ours: list[float], starts: list[float], steps: int) -> float:
    return 1000 * median([a - b for a, b in zip(ours, starts, strict=True)]) / steps


def floor(store: Path, steps: int) -> float:
    """Spawn and publish `steps` times in this process, and return the seconds."""
    store.mkdir()
    began = time.perf_counter()
    for number in range(steps):
        temporary = store / f"{number}.tmp"
        temporary.mkdir()
        environment = {**os.environ, "OUT": str(temporary)}
        subprocess.run(["bash", "-c", COMMAND], check=True, env=environment)
        _sync(temporary / "done")
        for name in ("meta.json", "COMPLETE"):
            with (temporary / name).open("wb") as stream:
                stream.write(b"{}")
                stream.flush()
                os.fsync(stream.fileno())
        _sync(temporary)
        temporary.rename(store / str(number))
        _sync(store)
    return time.perf_counter() - began


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


if __name__ == "__main__":
    main()
