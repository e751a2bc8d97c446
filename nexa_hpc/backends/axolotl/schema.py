"""What axolotl's own schema says of a config: asked of the axolotl in a step's environment.

Importing the schema takes seconds, so one process for each interpreter answers for all configs, as
those of a sweep, and ends soon afterwards; answers are also kept in the user's cache, by the config
and the release of axolotl. Called by planning, and by the step before it starts. Standard library.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import os
import select
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexa_hpc.core import atomic
from nexa_hpc.core.access import PRIVATE
from nexa_hpc.core.canonical import canonical_json
from nexa_hpc.core.paths import user_cache
from nexa_hpc.core.reading import read_json_or_none

ANSWER_S = 180.0
"""How long the first answer may take: a cold network disk and a large environment."""

_PROGRAM = Path(__file__).with_name("schema_program.py")
_QUIET = {
    "AXOLOTL_DO_NOT_TRACK": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",
}


@dataclass(frozen=True)
class Answer:
    """What the schema says of a config, or why it could not be asked."""

    problems: tuple[tuple[tuple[str | int, ...], str, tuple[str, ...]], ...] = ()
    """(place, message, the names known there) of each problem."""
    missing: str | None = None
    """What Python says where there is no axolotl."""
    unknown: str | None = None
    """Why the schema gave no answer."""


def ask(interpreter: Path, config: Mapping[str, Any]) -> Answer:
    """Return what the axolotl of `interpreter` says of `config`; never raises for its failures."""
    return _ask(interpreter, canonical_json(config))


@functools.lru_cache(maxsize=4096)
def _ask(interpreter: Path, config: str) -> Answer:
    kept = _cache_file(interpreter, config)
    told = read_json_or_none(kept) if kept is not None else None
    if not isinstance(told, dict):
        told = _process(interpreter).ask(config)
        if kept is not None and "problems" in told:
            _keep(kept, told)
    problems = tuple((tuple(place), text, tuple(names)) for place, text, names in _listed(told))
    return Answer(problems, told.get("missing"), told.get("unknown"))


def _listed(told: Mapping[str, Any]) -> list[Any]:
    return list(told.get("problems") or ())


def _cache_file(interpreter: Path, config: str) -> Path | None:
    """Return where the answer is kept; None where the release of axolotl cannot be told."""
    found = interpreter.parent.parent.glob("lib/python*/site-packages/axolotl-*.dist-info/RECORD")
    releases = [(str(file), file.stat().st_mtime_ns) for file in found]
    if len(releases) != 1:
        return None
    facts = json.dumps([config, str(interpreter), releases, _PROGRAM.read_text(encoding="utf-8")])
    name = hashlib.sha256(facts.encode()).hexdigest()
    return user_cache() / "axolotl" / f"{name}.json"


def _keep(file: Path, told: Mapping[str, Any]) -> None:
    try:
        atomic.make_folder(file.parent, PRIVATE)
        atomic.write_file(file, json.dumps(told))
    except OSError:
        return  # A full home: the next process asks again.


class _Process:
    """The program in the environment of `interpreter`, started by the first question."""

    def __init__(self, interpreter: Path) -> None:
        self._interpreter = interpreter
        self._process: subprocess.Popen[bytes] | None = None
        self._failed: str | None = None

    def ask(self, config: str) -> dict[str, Any]:
        """Return the answer about `config`, which is JSON on one line."""
        if self._failed is None:
            # One that has been silent for a while has ended by itself.
            if self._process is not None and self._process.poll() is not None:
                self.end()
            try:
                return self._answer(config)
            except (OSError, ValueError) as error:
                self._failed = f"axolotl's schema gave no answer: {error}"
                self.end()
        return {"unknown": self._failed}

    def _answer(self, config: str) -> dict[str, Any]:
        process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(config.encode() + b"\n")
        process.stdin.flush()
        text, deadline = b"", time.monotonic() + ANSWER_S
        while not text.endswith(b"\n"):
            ready, _, _ = select.select([process.stdout], [], [], deadline - time.monotonic())
            if not ready:
                raise ValueError(f"none within {ANSWER_S:.0f} s")
            chunk = os.read(process.stdout.fileno(), 1 << 16)
            if not chunk:
                raise ValueError("its process ended")
            text += chunk
        answer: dict[str, Any] = json.loads(text)
        return answer

    def _start(self) -> subprocess.Popen[bytes]:
        self._process = subprocess.Popen(
            [str(self._interpreter), "-c", _PROGRAM.read_text(encoding="utf-8")],
            cwd="/",  # `-c` imports from the current folder first.
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **_QUIET},
            start_new_session=True,
        )
        atexit.register(self.end)
        return self._process

    def end(self) -> None:
        """End the process, if there is one."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    pass  # Its reader has gone with a part of a question unread.


_process = functools.cache(_Process)
