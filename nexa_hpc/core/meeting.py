"""What the ranks of one attempt tell each other: small files in the attempt's work folder.

    work/<hh>/<key>/<n>/ranks/<token>/
        begin.json     rank 0: the outputs' temporary folders, the checkpoint, where it is to be met
        <rank>.json    each other rank: how its part ended; created once

Rank 0 publishes only when all the others have told that theirs is done; its end record tells them
that the attempt is over. Called by the worker and `together`. Standard library alone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nexa_hpc.core import atomic
from nexa_hpc.core.checkpoints import Checkpoint
from nexa_hpc.core.ranks import Ranks
from nexa_hpc.core.reading import list_names, read_json_or_none
from nexa_hpc.errors import Interrupted, NexaError, StepError

DONE, FAILED, STOPPED = "done", "failed", "stopped"

BEGIN_S = 1800.0
"""How long the others wait for rank 0, which looks through inputs first."""
END_S = 600.0
"""How long rank 0 waits for the others' ends after its own part is done."""
LINGER_S = {DONE: 3600.0, FAILED: 120.0, STOPPED: 300.0}
"""How long a rank whose part has ended stays, so that srun (`--wait`, `--kill-on-bad-exit`) does
not end rank 0 while it publishes, saves or records."""
_LOOK_S = (0.05, 2.0)

IsOver = Callable[[], bool]


class Meeting:
    """The folder in which the ranks of one start of one attempt meet."""

    def __init__(self, work_dir: Path, ranks: Ranks) -> None:
        self.ranks = ranks
        self._work_dir = work_dir
        self._folder = work_dir / "ranks" / ranks.token

    def begin(self, outputs: Mapping[str, Path], resume: Checkpoint | None) -> Ranks:
        """Tell the others what to work on, as rank 0; return the ranks with where they meet."""
        place = self.ranks.meeting_place()
        content = {
            "outputs": {name: str(folder) for name, folder in outputs.items()},
            "resume": resume and {"work_dir": str(resume.work_dir), "path": str(resume.path)},
            "meeting_place": place,
        }
        atomic.write_json(self._folder / "begin.json", content)
        return self.ranks.met_at(place)

    def wait_for_begin(self, is_over: IsOver) -> dict[str, Any] | None:
        """Return the fields of the task that rank 0 decides: `outputs`, `work_dir`, `resume` and
        `ranks`; None when the attempt was over before it told them.
        """
        for _ in looks(BEGIN_S):
            if "begin.json" in list_names(self._folder):
                told = read_json_or_none(self._folder / "begin.json")
                if told is not None:
                    return self._as_fields(told)
            if is_over():
                return None
        raise StepError(f"rank 0 did not begin within {BEGIN_S:.0f} s")

    def _as_fields(self, told: Mapping[str, Any]) -> dict[str, Any]:
        resume = told["resume"]
        return {
            "outputs": {name: Path(folder) for name, folder in told["outputs"].items()},
            "work_dir": self._work_dir,
            "resume": resume and Checkpoint(Path(resume["work_dir"]), Path(resume["path"])),
            "ranks": self.ranks.met_at(told["meeting_place"]),
        }

    def tell(self, end: str, reason: str = "", message: str = "") -> None:
        """Tell rank 0 how the part of this rank ended: DONE, FAILED or STOPPED."""
        content = {
            "end": end,
            "reason": reason,
            "message": message,
            "rank": self.ranks.rank,
            "host": os.environ.get("SLURMD_NODENAME") or os.uname().nodename,
            "at": time.time(),
        }
        atomic.create_once(self._folder / f"{self.ranks.rank}.json", content)

    def others(self) -> list[Mapping[str, Any]]:
        """Return what the others have told of their ends, the first first."""
        names = [name for name in list_names(self._folder) if name[:-5].isdigit()]
        notes = [read_json_or_none(self._folder / name) for name in names]
        return sorted((note for note in notes if note is not None), key=lambda note: note["at"])

    def wait_for_others(self) -> None:
        """Return when all others are done; raises StepError or Interrupted when one is not."""
        for _ in looks(END_S):
            notes = self.others()
            error = trouble(notes)
            if error is not None:
                raise error
            if len(notes) == self.ranks.size - 1:
                return
        left = sorted({*range(1, self.ranks.size)} - {note["rank"] for note in self.others()})
        raise StepError(
            f"rank {', '.join(map(str, left))} of {self.ranks.size} did not end within "
            f"{END_S:.0f} s of rank 0; nothing was published"
        )

    def linger(self, is_over: IsOver, end: str) -> None:
        """Return when the attempt is over: whoever ends early might end the others."""
        for _ in looks(LINGER_S[end]):
            if is_over():
                return


def trouble(notes: list[Mapping[str, Any]]) -> NexaError | None:
    """Return the error of the first rank that failed, or else that was stopped; None without."""
    for note in notes:
        if note["end"] == FAILED:
            error = StepError(f"rank {note['rank']} on {note['host']}: {note['message']}")
            error.reason = note["reason"]
            return error
    for note in notes:
        if note["end"] == STOPPED:
            return Interrupted(f"rank {note['rank']} on {note['host']} was stopped")
    return None


def looks(most_s: float) -> Iterator[None]:
    """Yield at once, then again and again, ever more seldom, for `most_s`."""
    deadline = time.monotonic() + most_s
    pause, longest = _LOOK_S
    while time.monotonic() < deadline:
        yield
        time.sleep(pause)
        pause = min(pause * 1.5, longest)
