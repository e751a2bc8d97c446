"""A canary in a secret environment variable comes up in no byte that is written, and in no argv."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import planned
import pytest
from conftest import child_environment
from planned import command

CANARY = "hf_C4n4ryQZ7'xy\nsecond-Line=0f/a+b=="
PARTS = [part.encode() for part in ("hf_C4n4ryQZ7", "second-Line=0f")]
NAME = "CANARY_TOKEN"

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


class Argv:
    """Reads the command lines of all processes, as `ps` would, while the context is open."""

    def __enter__(self) -> Argv:
        self.seen: set[bytes] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()

    def _read(self) -> None:
        while not self._stop.wait(0.01):
            for process in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    self.seen.add(process.read_bytes())
                except OSError:
                    continue


@pytest.fixture
def run(project: Path) -> Run:
    """Run `nexa-hpc ARGS` with the canary in its environment; looks for it everywhere after."""

    def run(*args: str, expect: int = 0, **env: str) -> subprocess.CompletedProcess[bytes]:
        with Argv() as argv:
            done = subprocess.run(
                [sys.executable, "-m", "nexa_hpc", *args],
                cwd=project,
                env={**child_environment(), NAME: CANARY, **env},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=300,
            )
        assert done.returncode == expect, done.stdout + done.stderr
        assert any(b"nexa_hpc" in line for line in argv.seen), "the command lines were not read"
        for what in (done.stdout, done.stderr, *argv.seen, *_written(project)):
            assert not any(part in what for part in PARTS), what
        return done

    return run


def _written(project: Path) -> Iterator[bytes]:
    """Yield every name and every file below `project`, but for the user's own documents."""
    for path in project.rglob("*"):
        yield os.fsencode(path.relative_to(project))
        if path.is_file():
            yield path.read_bytes()


def write(project: Path, *steps: dict[str, Any]) -> None:
    named = [{"env": {"secrets": [NAME]}, **step} for step in steps]
    document = {"pipeline": {"name": "p", "steps": named}}
    (project / "p.yaml").write_text(json.dumps(document))


PRINTS_ALL = (
    f'env; export -p; echo "$WORK ${NAME}"; printf %s "${NAME}" >&2; '
    'test -n "$CANARY_TOKEN"; echo fine > $OUT/x; '
    # Byte by byte, so that it comes in as many pieces as there are.
    f'"$PYTHON" -c "import os, sys, time\nfor c in os.environ[\'{NAME}\']:\n'
    '    sys.stdout.write(c); sys.stdout.flush(); time.sleep(0.002)"'
)


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_step_that_prints_its_environment(project: Path, run: Run, jobs: str) -> None:
    write(project, command("a", PRINTS_ALL), command("b", f"{PRINTS_ALL}; :"))
    told = run("run", "p.yaml", "--jobs", jobs)
    assert told.stdout.count(b"***") >= 2 * 5
    run("logs", "a")
    for reading in ("status --json", "why a", "list", "artifacts list"):
        run(*reading.split())


def test_an_environment_that_prints_itself_while_it_is_entered(project: Path, run: Run) -> None:
    env = {"secrets": [NAME], "setup": f'env; set -x; test -n "${NAME}"; set +x'}
    write(project, command("a", PRINTS_ALL, env=env))
    assert run("run", "p.yaml").stdout.count(b"***") >= 6
    write(project, command("a", env={**env, "setup": f'test -z "${NAME}"'}, cache_hint=1))
    run("run", "p.yaml", expect=1)


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_failure_whose_traceback_holds_the_environment(
    project: Path, run: Run, jobs: str
) -> None:
    (project / "mine.py").write_text(
        "import os\n"
        "def fail(out_dir):\n"
        "    raise RuntimeError(f'{os.environ!r} and ' + os.environ['CANARY_TOKEN'])\n"
        "def deep(out_dir):\n"
        "    raise ValueError('y' * 575 + os.environ['CANARY_TOKEN'])\n"
        "def from_(out_dir):\n"
        "    try: fail(out_dir)\n"
        "    except RuntimeError as error: raise OSError(5, 'bad', os.environ['CANARY_TOKEN'])"
        " from error\n"
    )
    steps = [
        {"id": name, "uses": f"mine:{name}", "after": []} for name in ("fail", "deep", "from_")
    ]
    write(project, *steps, command("exits", f'echo "${NAME}"; exit 3'))
    run("run", "p.yaml", "--jobs", jobs, expect=1)
    ends = [json.loads(path.read_bytes()) for path in project.rglob("*.end.json")]
    assert len(ends) == 4
    assert sum("***" in end["message"] for end in ends) >= 2
    for step in ("fail", "deep", "from_", "exits"):
        assert b"***" in run("logs", step).stdout
    run("status")
    run("resume", expect=1)


def test_a_step_that_does_not_name_it_prints_it_no_more_than_one_that_does(
    project: Path, run: Run
) -> None:
    write(project, {**command("a", PRINTS_ALL), "env": {}}, command("b"))
    run("run", "p.yaml")


def test_a_live_terminal_shows_it_no_more(project: Path) -> None:
    write(project, command("a", PRINTS_ALL))
    script = ["script", "-qec", f"{sys.executable} -m nexa_hpc run p.yaml", "/dev/null"]
    environment = {**child_environment(), NAME: CANARY, "TERM": "xterm"}
    try:
        done = subprocess.run(
            script, cwd=project, env=environment, capture_output=True, timeout=240
        )
    except FileNotFoundError:
        pytest.skip("needs script(1)")
    assert done.returncode == 0, done.stdout
    assert not any(part in done.stdout for part in PARTS)


def test_the_value_is_in_no_key(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = command("a", env={"secrets": [NAME]})
    keys = set()
    for value in (CANARY, "another"):
        monkeypatch.setenv(NAME, value)
        keys.add(planned.key_of(project, step))
    assert len(keys) == 1


def test_a_short_value_is_let_through(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, "abc")
    step = command("a", f'echo "<${NAME}>"', env={"secrets": [NAME]})
    planned.run(project, step)
    (log,) = project.rglob("*.log")
    assert log.read_text() == "<abc>\n"


@pytest.mark.slow
def test_a_training_with_a_hub_token(project: Path, run: Run) -> None:
    pytest.importorskip("torch", reason="needs the extra [hf]")
    pytest.importorskip("transformers", reason="needs the extra [hf]")
    from hf_tiny import save_bert, write_splits

    train = {
        "id": "train", "uses": "runners.train", "backend": "hf", "out": "checkpoint",
        "in": {"model": str(save_bert(project / "b")), "dataset": str(write_splits(project / "d"))},
        "params": {"max_steps": 4, "use_cpu": True, "save_steps": 2, "save_strategy": "steps"},
        "env": {"secrets": ["HF_TOKEN", NAME]},
    }  # fmt: skip
    write(project, train, command("a", "env; ls -R $IN_c", **{"in": {"c": "checkpoint"}}))
    began = time.monotonic()
    run("run", "p.yaml", HF_TOKEN=CANARY.replace("\n", ""), HF_HUB_OFFLINE="1")
    assert time.monotonic() - began < 240
    written = b"".join(_written(project))
    assert b"***" in written
    assert not re.search(b"training_args.bin", written), "a pickle of all arguments"
