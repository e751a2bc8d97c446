"""Which of a running command's files are checkpoints, and when one may be trusted.

A command writes checkpoints as it likes; nobody tells us when one is whole. A match is sealed when
two looks find it unchanged, or when it took another file's place since the last look, as a rename
does. Commands that write under another name and rename are therefore always safe; ones that write
in place are, once a look's interval has passed. Of a folder, its writer may also be known to write
one file last. Used by `runners.command` and by training with axolotl.
"""

from __future__ import annotations

from pathlib import Path

from nexa_hpc.core import checkpoints

_State = tuple[int, int, int]
_LAST_LOOKS = 5


class CheckpointWatch:
    """Looks at the matches of `pattern` below `work_dir` again and again.

    With `last_file`, a folder counts only when it holds the file of that name.
    """

    def __init__(self, work_dir: Path, pattern: str, last_file: str | None = None) -> None:
        self._work_dir = work_dir
        self._pattern = pattern
        self._last_file = last_file
        self._seen: dict[Path, _State] = {}
        self._sealed: dict[Path, _State] = {}

    def look(self) -> None:
        """Seal the matches, if all of them are whole and any is new."""
        now = self._states()
        if all(_is_whole(state, self._seen.get(file)) for file, state in now.items()):
            self._seal(now)
        self._seen = now

    def last_look(self) -> None:
        """Seal the matches: whoever wrote them has ended by itself; other ranks may write on."""
        for _ in range(_LAST_LOOKS):
            if self._seal(self._states()):
                return

    def _seal(self, states: dict[Path, _State]) -> bool:
        """Seal the files with these `states`; False where one has gone meanwhile."""
        if not states or states == self._sealed:
            return True
        if not checkpoints.snapshot(self._work_dir, sorted(states)):
            return False
        self._sealed = states
        return True

    def _states(self) -> dict[Path, _State]:
        found: dict[Path, _State] = {}
        for match in self._work_dir.glob(self._pattern):
            if match.relative_to(self._work_dir).parts[0] in checkpoints.OWN_FOLDERS:
                continue
            if self._last_file and not (match / self._last_file).is_file():
                continue
            for file in match.rglob("*") if match.is_dir() else [match]:
                try:
                    stat = file.stat()
                except FileNotFoundError:
                    continue  # Replaced or removed between the listing and the look.
                if not file.is_dir():
                    found[file] = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
        return found


def _is_whole(state: _State, before: _State | None) -> bool:
    if before is None:
        return False
    replaced = state[0] != before[0]
    return replaced or state == before
