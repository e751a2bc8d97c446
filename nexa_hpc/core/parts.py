"""Parts of a run: the instances that `--point` and `--step` name, what is above and below them.

Called by `cancel`, `resume` and what holds submissions back. Standard library alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from nexa_hpc.core.instances import Instance
from nexa_hpc.core.points import find_instances, find_point
from nexa_hpc.core.rounds import Part
from nexa_hpc.core.runs import Run
from nexa_hpc.core.states import Standing, State

LIVE = (State.SUBMITTED, State.RUNNING)


@dataclass(frozen=True)
class Named:
    """The instances that a user's words name."""

    own: frozenset[str]
    """Those that serve no other point."""
    shared: frozenset[str]
    """Those that points which were not named need as well."""


def named(run: Run, points: Sequence[str], step: str | None) -> Named:
    """Return the instances of the points and the step that are named; without points, of all.

    Raises UnknownNameError, naming the nearest.
    """
    chosen = {find_point(run.points, word).name for word in points}
    of_step = run.instances if step is None else find_instances(run.instances, run.points, step)
    if not chosen:
        return Named(frozenset(of_step), frozenset())
    serving = {name: i for name, i in of_step.items() if chosen.intersection(i.points)}
    own = frozenset(name for name, i in serving.items() if chosen.issuperset(i.points))
    return Named(own, frozenset(serving) - own)


def part_to_resume(
    run: Run, standings: Mapping[str, Standing], points: Sequence[str], step: str | None
) -> Part | None:
    """Return what a round of the points and the step that are named is about; None for all of it.

    That is what they name, with all that is above. The rest is left out but for what lives, unless
    the run was cancelled: then that is on its way out. Raises UnknownNameError, naming the nearest.
    """
    if not points and step is None:
        return None
    found = named(run, points, step)
    chosen = with_all_above(run.instances, found.own | found.shared)
    stays = () if run.cancelled else LIVE
    left_out = frozenset(
        name
        for name, standing in standings.items()
        if name not in chosen and not standing.state.succeeded and standing.state not in stays
    )
    return Part(chosen, left_out, f"left out by `resume {words(points, step)}`")


def words(points: Sequence[str], step: str | None) -> str:
    """Return the options that name a part, as they are written."""
    options = [f"--point {point}" for point in points]
    return " ".join([*options, f"--step {step}"] if step is not None else options)


def with_all_above(instances: Mapping[str, Instance], names: Iterable[str]) -> frozenset[str]:
    """Return `names` and all that they wait for; `instances` are in graph order."""
    found = set(names)
    for name in reversed(list(instances)):
        if name in found:
            found.update(instances[name].parents)
    return frozenset(found)


def with_all_below(instances: Mapping[str, Instance], names: Iterable[str]) -> frozenset[str]:
    """Return `names` and all that waits for them; `instances` are in graph order."""
    found = set(names)
    if not found:
        return frozenset()
    for name, instance in instances.items():
        if not found.isdisjoint(instance.parents):
            found.add(name)
    return frozenset(found)
