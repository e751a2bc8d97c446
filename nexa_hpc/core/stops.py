"""Which instances of a run are stopped in its present round: by `cancel`, or as `resume` has it.

    stopped/<round>.<token>.json   one call of `cancel` for a part of the run: who, when, which

One file for each call, however many instances it names: it is there whole or not at all, and ten
thousand instances cost one fsync. It counts for its round alone; the next one brings all back. What
a stop means is decided by `standings.as_stopped`. Standard library alone.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterable, Mapping

from nexa_hpc.core import atomic
from nexa_hpc.core.paths import RunPaths
from nexa_hpc.core.reading import list_names, read_json
from nexa_hpc.core.records import now
from nexa_hpc.core.rounds import left_out, present_round
from nexa_hpc.core.sharing import require_own, user_name

_NAME = re.compile(r"([1-9][0-9]*)\.[0-9a-f]{16}\.json")


def stop_instances(place: RunPaths, names: Iterable[str], why: str = "") -> None:
    """Stop the instances `names` in the present round of the run at `place`.

    What is stopped already may be named once more. Nobody is told: drivers, the advance job and
    elements look for themselves. Raises UserError for another user's run.
    """
    require_own(place.folder, "the run in")
    content = {
        "at": now(),
        "by": user_name(),
        "from": socket.gethostname(),
        "why": why,
        "instances": sorted(names),
    }
    name = f"{present_round(place)}.{os.urandom(8).hex()}.json"
    atomic.create_once(place.stopped / name, content)


class Stops:
    """What of one run is stopped; files, which never change, are read once."""

    def __init__(self, place: RunPaths) -> None:
        self._place = place
        self._left_out: dict[int, Mapping[str, str]] = {}
        self._calls: dict[str, Mapping[str, str]] = {}

    def now(self) -> Mapping[str, str]:
        """Return name -> why, in words, for each instance stopped in the present round."""
        number = present_round(self._place)
        if number not in self._left_out:
            self._left_out[number] = left_out(self._place, number)
        found = dict(self._left_out[number])
        for name in list_names(self._place.stopped):
            match = _NAME.fullmatch(name)
            if match is not None and int(match[1]) == number:
                found.update(self._call(name))
        return found

    def _call(self, name: str) -> Mapping[str, str]:
        if name not in self._calls:
            content = read_json(self._place.stopped / name)
            why = f": {content['why']}" if content["why"] else ""
            words = f"stopped by {content['by']}{why}"
            self._calls[name] = dict.fromkeys(content["instances"], words)
        return self._calls[name]
