"""The checkpoints that axolotl leaves in its output folder: which are whole, which is the newest.

A checkpoint is the folder `checkpoint-<step>`; its `trainer_state.json` is written last. Axolotl
saves one after the step at hand when it finds the file `TRIGGER`. Standard library alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nexa_hpc.core.reading import read_json_or_none

PATTERN = "checkpoint-*"
STATE = "trainer_state.json"
TRIGGER = "axolotl_checkpoint.save"


def step_of(checkpoint: Path) -> int:
    """Return after which step `checkpoint` was saved."""
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


def newest(folder: Path) -> Path | None:
    """Return the newest whole checkpoint anywhere below `folder`, or None."""
    found = [state.parent for state in folder.glob(f"**/{PATTERN}/{STATE}")]
    return max(found, key=step_of, default=None)


def to_resume(folder: Path) -> Path | None:
    """Return the newest whole checkpoint below `folder` that has steps left, or None.

    Resumed from its last step in the middle of an epoch, transformers trains one step more.
    """
    found = []
    for file in folder.glob(f"**/{PATTERN}/{STATE}"):
        state = read_json_or_none(file) or {}
        if state.get("global_step", 0) < (state.get("max_steps") or float("inf")):
            found.append(file.parent)
    return max(found, key=step_of, default=None)


def stamp(folder: Path) -> tuple[int, int] | None:
    """Return which checkpoint is the newest below `folder`, and when it was saved."""
    checkpoint = newest(folder)
    if checkpoint is None:
        return None
    try:
        return step_of(checkpoint), (checkpoint / STATE).stat().st_mtime_ns
    except OSError:
        return None  # Rotated away meanwhile.


def state_of(folder: Path) -> dict[str, Any]:
    """Return the trainer's state in the newest whole checkpoint below `folder`; empty if none."""
    checkpoint = newest(folder)
    state = read_json_or_none(checkpoint / STATE) if checkpoint is not None else None
    return state if isinstance(state, dict) else {}
