"""A running axolotl: its output read, its checkpoints sealed, asked to save before it is ended.

Axolotl has no answer to SIGTERM, and dies of it. So it is started with the signal ignored, and is
asked by a file to save after the step at hand; when that checkpoint is sealed, the processes are
killed. Where Slurm sends SIGTERM to every process of a job, as when it preempts or requeues one,
torchrun and the processes that load rows heed it whatever they are started with: then the training
goes on from the checkpoint before. Called by `train_axolotl`.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from nexa_hpc.backends.axolotl import checkpoints
from nexa_hpc.backends.axolotl.configuring import VARIABLES
from nexa_hpc.backends.axolotl.output import Reader
from nexa_hpc.core.handlers import Task
from nexa_hpc.core.leftovers import LAUNCH_VARIABLE, end_leftovers
from nexa_hpc.core.ranks import ALONE
from nexa_hpc.runners.checkpoint_watch import CheckpointWatch
from nexa_hpc.runners.process_group import await_stop, signal_group

_LOOK_EVERY_S = 1.0
_SAVE_S = 600.0
"""How long a save may take; whoever stops a job ends it sooner."""
_DRAIN_S = 2.0
_READ_BYTES = 1 << 16


class AxolotlProcess:
    """Runs axolotl's commands for one task, one after the other."""

    def __init__(self, task: Task, out: Path, reader: Reader, variables: Mapping[str, str]) -> None:
        self._task = task
        self._out = out
        self._reader = reader
        self._variables = variables
        self._looked_at = 0.0
        pattern = f"{out.name}/{checkpoints.PATTERN}"
        # All ranks share the work folder; one of them seals what is in it.
        seals = task.ranks.rank == 0
        self._seals = CheckpointWatch(task.work_dir, pattern, checkpoints.STATE) if seals else None

    def run(self, argv: Sequence[str], *, saves: bool = False) -> int:
        """Run one command to its end and return its exit code; what stops us, stops it first.

        With `saves` it is a training, which is asked to save before.
        """
        mark = f"{os.getpid()}-{os.urandom(4).hex()}"
        process = subprocess.Popen(
            argv,
            cwd=self._task.code or self._task.project,
            env={**self._environment(), LAUNCH_VARIABLE: mark},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_ignore_sigterm,
        )
        try:
            code = self._follow(process)
            if self._seals is not None:
                self._seals.last_look()
            await_stop()
        except BaseException:
            if saves:
                self._save(process)
            raise
        finally:
            signal_group(process, signal.SIGKILL)
            end_leftovers(mark, LAUNCH_VARIABLE)
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        return code

    def _environment(self) -> dict[str, str]:
        # The ranks of our tasks are not those of the processes that a launcher starts.
        kept = {k: v for k, v in os.environ.items() if k not in ALONE.variables()}
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        return {**kept, "PATH": path, **VARIABLES, **self._variables}

    def _follow(self, process: subprocess.Popen[bytes]) -> int:
        ended_at = None
        while self._read(process):
            if process.poll() is not None:
                # Others may keep the pipe open; what they print is no longer waited for.
                ended_at = ended_at or time.monotonic()
                if time.monotonic() - ended_at > _DRAIN_S:
                    break
        self._reader.feed(b"")
        return process.wait()

    def _read(self, process: subprocess.Popen[bytes]) -> bool:
        """Read what is there, look for checkpoints when it is their time; False at the end."""
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], _LOOK_EVERY_S)
        if ready:
            piece = os.read(process.stdout.fileno(), _READ_BYTES)
            if not piece:
                return False
            self._reader.feed(piece)
        self._look()
        return True

    def _look(self) -> None:
        now = time.monotonic()
        if self._seals is not None and now - self._looked_at >= _LOOK_EVERY_S:
            self._looked_at = now
            self._seals.look()

    def _save(self, process: subprocess.Popen[bytes]) -> None:
        """Have a training that has begun save after the step at hand, and seal that."""
        if self._reader.total is None or process.poll() is not None:
            return
        print("stopping: axolotl saves after the step at hand", file=sys.stderr, flush=True)
        before = checkpoints.stamp(self._out)
        (self._out / checkpoints.TRIGGER).touch()
        deadline = time.monotonic() + _SAVE_S
        while time.monotonic() < deadline and checkpoints.stamp(self._out) == before:
            if not self._read(process) or process.poll() is not None:
                break
        if self._seals is not None:
            self._seals.last_look()
        sealed = checkpoints.newest(self._out)
        if sealed is not None:
            step = checkpoints.step_of(sealed)
            print(f"stopped; the checkpoint of step {step} is sealed", file=sys.stderr, flush=True)


def _ignore_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
