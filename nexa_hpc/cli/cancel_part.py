"""`cancel --point`, `cancel --step`: stops a part of a run, and says what that means. Light."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from nexa_hpc.cli.observing import observer_of
from nexa_hpc.core.parts import LIVE, Named, named, with_all_below, words
from nexa_hpc.core.records import read_attempts
from nexa_hpc.core.runs import Run
from nexa_hpc.core.standings import fold_all
from nexa_hpc.core.states import Standing
from nexa_hpc.core.stops import stop_instances

_NAMED = 5

Standings = Mapping[str, Standing]


@dataclass
class _Live:
    """Steps that live though they were stopped, by who can end them."""

    here: list[str] = field(default_factory=list)
    """By their driver, or Slurm."""
    alone: list[str] = field(default_factory=list)
    """By nobody: they run in the process of their driver."""
    elsewhere: list[str] = field(default_factory=list)
    """By nobody in this run: another one makes them."""


def cancel_part(run: Run, points: Sequence[str], step: str | None) -> None:
    """Stop what the words name of `run` and no other point needs, and print what becomes of it.

    Called again, it finishes what was interrupted. Raises UnknownNameError before anything is
    written; SchedulerError when Slurm does not answer, with the stop recorded.
    """
    found = named(run, points, step)
    observer = observer_of(run)
    standings = fold_all(run, observer)
    chosen = _unsettled(found.own, standings)
    if not chosen:
        print(f"run {run.id}: nothing is running or waiting of {words(points, step)}")
        _tell_of_shared(found, standings)
        return
    if not chosen <= run.stopped.keys():
        stop_instances(run.place, chosen)
    # Looked at anew: what was submitted before it was stopped is to be ended as well.
    now = fold_all(run, observer)
    live = _sorted_out(run, [s for s in chosen if now[s].state in LIVE])
    count = _end_in_slurm(run, now)
    _tell(run, len(chosen), live, count)
    _tell_of_shared(found, standings)
    below = _unsettled(with_all_below(run.instances, chosen), standings) - chosen
    _note(below, "cannot start, for want of what was stopped")


def _unsettled(names: Iterable[str], standings: Standings) -> frozenset[str]:
    return frozenset(name for name in names if not standings[name].state.settled)


def _sorted_out(run: Run, steps: Iterable[str]) -> _Live:
    live = _Live()
    for step in sorted(steps):
        attempts = read_attempts(run.paths.records(run.instances[step].key))
        claim = attempts[-1].claim if attempts else {}
        if claim.get("run") != run.id:
            live.elsewhere.append(step)
        elif "start" in claim:
            # Who claims and starts in one record is about to run the step itself.
            live.alone.append(step)
        else:
            live.here.append(step)
    return live


def _end_in_slurm(run: Run, standings: Standings) -> int:
    """Have Slurm end what holds nothing but stopped steps; return how many elements that are."""
    if run.request.get("slurm") is None:
        return 0
    # Imported here: a run without Slurm needs none of it.
    from nexa_hpc.schedulers.slurm.cancelling import end_stopped

    return len(end_stopped(run, standings))


def _tell(run: Run, count: int, live: _Live, jobs: int) -> None:
    told = [f"{_steps(count)} stopped"]
    if live.here:
        told.append(f"{len(live.here)} of them asked to end")
    if jobs:
        told.append(f"Slurm asked to end {jobs} job{'' if jobs == 1 else 's or elements'}")
    print(f"run {run.id}: {', '.join(told)}; `nexa-hpc resume {run.id}` brings them back")
    if live.alone:
        names = _names(live.alone)
        print(
            f"note: {names} runs in the process of its driver, which cannot be stopped singly: it "
            f"goes on; `nexa-hpc cancel {run.id}` stops the whole run"
        )
    _note(live.elsewhere, "goes on: another run makes it", "go on: another run makes them")


def _tell_of_shared(found: Named, standings: Standings) -> None:
    shared = _unsettled(found.shared, standings)
    _note(shared, "goes on: other points need it", "go on: other points need them")


def _note(steps: Iterable[str], one: str, many: str = "") -> None:
    found = sorted(steps)
    if found:
        what = one if len(found) == 1 else many or one
        print(f"note: {_steps(len(found))} {what}: {_names(found)}")


def _steps(count: int) -> str:
    return f"{count} step{'' if count == 1 else 's'}"


def _names(steps: Sequence[str]) -> str:
    more = f" and {len(steps) - _NAMED} more" if len(steps) > _NAMED else ""
    return ", ".join(f"'{step}'" for step in steps[:_NAMED]) + more
