"""A sweep in a few lines: how many instances each step has, and what of them is of interest. Light.

Called by `status`, `run` and `plan`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from nexa_hpc.cli.tables import print_table
from nexa_hpc.core.instances import Instance
from nexa_hpc.core.runs import Run
from nexa_hpc.core.states import Standing, State

_OF_INTEREST = (State.FAILED, State.CANCELLED, State.RUNNING)
_SHOWN = 20


def in_words(points: int, instances: Iterable[Instance]) -> str:
    """Return what a sweep comes to: `24 points: prepare ×1, train ×4, eval ×24; 3 cached`."""
    found = list(instances)
    counts = Counter(instance.step_id for instance in found)
    cached = sum(instance.action == "SKIP" for instance in found)
    steps = ", ".join(f"{step} ×{count}" for step, count in counts.items())
    return f"{points} point{'' if points == 1 else 's'}: {steps}; {cached} cached"


def print_step_counts(run: Run, standings: Mapping[str, Standing]) -> None:
    """Print a row for each step: how many instances it has, and how many are in which state."""
    counts: dict[str, Counter[State]] = defaultdict(Counter)
    for name, standing in standings.items():
        counts[run.instances[name].step_id][standing.state] += 1
    states = [state for state in State if any(found[state] for found in counts.values())]
    rows = [
        [step, str(found.total()), *(str(found[state] or "") for state in states)]
        for step, found in counts.items()
    ]
    print_table(["STEP", "OF", *(state.value for state in states)], rows)


def of_interest(standings: Mapping[str, Standing]) -> dict[str, Standing]:
    """Return what failed, was stopped or runs: the first few, and none of what is as expected."""
    chosen = {name: s for name, s in standings.items() if s.state in _OF_INTEREST}
    by_state = sorted(chosen, key=lambda name: _OF_INTEREST.index(chosen[name].state))
    if by_state:
        print()
    if len(by_state) > _SHOWN:
        print(f"{_SHOWN} of {len(by_state)} (all of them: --all)")
    return {name: chosen[name] for name in by_state[:_SHOWN]}
