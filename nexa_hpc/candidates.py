"""What may be submitted: the Slurm steps that wait for nothing but what Slurm runs, too.

Called by `handover` and `submitting`, and by `slurm_plans` for runs that are only planned. Standard
library alone.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from nexa_hpc.core.endpoints import is_for_others
from nexa_hpc.core.instances import Instance
from nexa_hpc.core.records import Attempt
from nexa_hpc.core.runs import Run
from nexa_hpc.core.states import Standing
from nexa_hpc.core.trying import Changes, together

REFUSED = "given back: there was no room for it in Slurm's queue"


@dataclass(frozen=True)
class Candidate:
    """An instance that another attempt may be made at."""

    instance: Instance
    number: int
    """The attempt to claim."""
    changes: Changes = field(default_factory=Changes)
    """What its failures so far ask to change."""
    was_refused: bool = False
    """Whether Slurm had no room for it when it was last submitted."""


def within_reach(instances: Iterable[Instance], settled: Container[str]) -> Iterator[Instance]:
    """Yield the Slurm steps, of `instances` in graph order, that may be in Slurm's hands.

    Neither those that have `settled`, nor those that wait for a local step: that comes first.
    """
    waiting: set[str] = set()
    for instance in instances:
        if instance.step in settled:
            continue
        if instance.scheduler == "slurm" and waiting.isdisjoint(instance.parents):
            yield instance
        else:
            waiting.add(instance.step)


def with_servers(
    run: Run, candidates: Mapping[str, Candidate], known: Mapping[str, Standing]
) -> tuple[dict[str, Candidate], frozenset[str]]:
    """Return those of `candidates`, in graph order, that can be handed over now as far as servers
    go, and the servers whose jobs must end first; `known` is what is known of other steps.

    What reads a server goes with it into one element, and only when all that does may go. What
    one of them asks to change is asked for all. A server that stays is read from other jobs, too.
    """
    found = dict(candidates)
    awaited = set()
    for server, inside in _by_element(run, candidates).items():
        readers = [reader.step for reader in run.readers[server]]
        if server in candidates:
            settled = {r for r in readers if r in known and known[r].state.settled}
            if all(reader in candidates or reader in settled for reader in readers):
                changes = together([candidates[step].changes for step in inside])
                found[server] = replace(candidates[server], changes=changes)
                continue
        elif candidates.keys().isdisjoint(readers) or _is_up_for_all(run, server, known):
            continue
        else:
            awaited.add(server)
        for step in inside:
            found.pop(step)
    return _without_orphans(found, candidates), frozenset(awaited)


def _is_up_for_all(run: Run, server: str, known: Mapping[str, Standing]) -> bool:
    is_up = server in known and known[server].state.succeeded
    return is_up and is_for_others(run.instances[server], run.paths)


def _by_element(run: Run, candidates: Iterable[str]) -> dict[str, list[str]]:
    """Return server -> the candidates in its element."""
    found: dict[str, list[str]] = {}
    for step in candidates if run.shared_elements else ():
        if step in run.shared_elements:
            found.setdefault(run.shared_elements[step], []).append(step)
    return found


def _without_orphans(
    chosen: Mapping[str, Candidate], candidates: Mapping[str, Candidate]
) -> dict[str, Candidate]:
    """Return what of `chosen` waits for none of the other `candidates`."""
    left_out = set(candidates.keys() - chosen.keys())
    found = {}
    for step, candidate in chosen.items():
        if left_out.isdisjoint(candidate.instance.parents):
            found[step] = candidate
        else:
            left_out.add(step)
    return found


def was_refused(attempt: Attempt | None) -> bool:
    """Return whether an attempt came to nothing for want of room in the queue."""
    end = attempt.end if attempt is not None else None
    return end is not None and end["message"] == REFUSED
