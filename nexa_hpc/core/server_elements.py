"""Which steps share the element of a server in Slurm, and what can be wrong with that.

A server that a step starts in Slurm lives in that step's element, and the steps that read it run
there behind it, one after the other: no GPU waits while they queue, and nothing outlives the job.
Whatever comes between it and a reader runs there as well, and the element waits for what any of
them waits for. Called by planning, which records `Instance.element`. Standard library alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from nexa_hpc.core.endpoints import is_kept, readers_of, servers_read
from nexa_hpc.core.graph import cycles
from nexa_hpc.core.instances import Instance

Problem = tuple[Instance, str, str]
"""Where, at which key of its step, and what is wrong."""
_OWN = ("timeout_min",)
"""Resources that a step has for itself: an element has the time of all that it runs."""
_IN_ONE_JOB = "nexa-hpc sbatch allocation FILE runs all in one job"


def with_elements(
    instances: Mapping[str, Instance],
) -> tuple[Mapping[str, Instance], list[Problem]]:
    """Return `instances` with the elements that they share, and what is wrong with those."""
    readers = readers_of(instances)
    problems = [*_twins(instances, readers)]
    problems += [p for found in readers.values() for r in found for p in _elsewhere(r, instances)]
    in_slurm = {s: found for s, found in readers.items() if instances[s].scheduler == "slurm"}
    if not in_slurm:
        return instances, problems
    members = _members(instances, in_slurm)
    servers: dict[str, list[str]] = {}
    for server, inside in members.items():
        for step in inside:
            servers.setdefault(step, []).append(server)
    for step, found in servers.items():
        problems += _problems(instances[step], [instances[server] for server in found])
    problems += _kept_above(instances, members)
    element = {step: found[0] for step, found in servers.items()}
    problems += [] if problems else _cycle_problems(instances, element)
    placed = {
        s: i._replace(element=element[s]) if s in element else i for s, i in instances.items()
    }
    return placed, problems


def _members(
    instances: Mapping[str, Instance], readers: Mapping[str, Sequence[Instance]]
) -> dict[str, set[str]]:
    """Return server -> what runs in its element: it, its readers, and all that is between."""
    children: dict[str, list[str]] = {}
    for step, instance in instances.items():
        for parent in instance.parents:
            children.setdefault(parent, []).append(step)
    found = {}
    for server, reading in readers.items():
        above = _reached((r.step for r in reading), lambda s: instances[s].parents, stop={server})
        found[server] = _reached([server], lambda s: children.get(s, ()), within=above)
    return found


def _reached(
    start: Iterable[str],
    neighbours: Callable[[str], Iterable[str]],
    *,
    stop: Collection[str] = (),
    within: Collection[str] | None = None,
) -> set[str]:
    """Return `start` and all that is reached from there, not going on from what is in `stop`."""
    found = set(start)
    waiting = list(found)
    while waiting:
        step = waiting.pop()
        for other in neighbours(step) if step not in stop else ():
            if other not in found and (within is None or other in within):
                found.add(other)
                waiting.append(other)
    return found


def _twins(instances: Mapping[str, Instance], servers: Iterable[str]) -> Iterator[Problem]:
    """Yield the servers that have the key of another one: both would have the same attempts."""
    first: dict[str, str] = {}
    for step in servers:
        instance = instances[step]
        other = first.setdefault(instance.key, step)
        if other != step:
            message = (
                f"it serves what '{instances[other].step_id}' serves, in the same way: let what "
                "reads it read that one"
            )
            yield instance, "params", message


def _elsewhere(reader: Instance, instances: Mapping[str, Instance]) -> Iterator[Problem]:
    """Yield where a step in Slurm reads a server that is not."""
    for server in servers_read(reader):
        if reader.scheduler == "slurm" != instances[server].scheduler:
            message = (
                f"it runs in Slurm, and reads the server of '{instances[server].step_id}', which "
                "runs where the pipeline is driven: give both the same `scheduler`"
            )
            yield reader, "scheduler", message


def _problems(instance: Instance, servers: Sequence[Instance]) -> Iterator[Problem]:
    """Yield what keeps `instance` from sharing the element of `servers`, which is to be one."""
    server = servers[0]
    named = " and ".join(f"'{s.step_id}'" for s in servers)
    where = f"it runs in the element of the server {named}"
    is_between = instance is not server and server.step not in servers_read(instance)
    after = ", or name in `after` what the steps really wait for: it comes between"
    if len(servers) > 1:
        message = f"{where}: there is one in an element ({_IN_ONE_JOB})"
        yield instance, "after", message + (after if is_between else "")
        return
    if instance.scheduler != "slurm":
        yield instance, "scheduler", f"{where}: say `scheduler: slurm`" + after * is_between
    if max(instance.resources.get(n) or 1 for n in ("nodes", "tasks_per_node")) > 1:
        message = "what runs in the element of a server has one task on one node"
        yield instance, "resources", message + after * is_between
    asked, own = _shared_resources(server), _shared_resources(instance)
    differing = sorted(name for name in own if own[name] != asked.get(name))
    if differing:
        message = (
            f"{where}, which asks for another {', '.join(differing)}: leave it away here, or ask "
            f"for the same at '{server.step_id}'"
        )
        yield instance, f"resources.{differing[0]}", message + after * is_between


def _shared_resources(instance: Instance) -> dict[str, object]:
    return {n: v for n, v in instance.resources.items() if n not in _OWN and v is not None}


def _kept_above(
    instances: Mapping[str, Instance], members: Mapping[str, set[str]]
) -> Iterator[Problem]:
    """Yield what would wait for the end of an element that stays for its server."""
    kept = {step: s for s, inside in members.items() if is_kept(instances[s]) for step in inside}
    for instance in instances.values() if kept else ():
        above = next((p for p in instance.parents if p in kept), None)
        if above is not None and instance.step not in members[kept[above]]:
            message = (
                f"it would wait for '{instances[above].step_id}', whose job stays for the server "
                f"of '{instances[kept[above]].step_id}' (`keep: true`): name in `after` what it "
                "really waits for"
            )
            yield instance, "after", message


def _cycle_problems(
    instances: Mapping[str, Instance], element: Mapping[str, str]
) -> Iterator[Problem]:
    """Yield the servers that would wait for each other, their elements being one each."""
    parents: dict[str, dict[str, None]] = {element.get(step, step): {} for step in instances}
    for step, instance in instances.items():
        own = element.get(step, step)
        above = (element.get(parent, parent) for parent in instance.parents)
        parents[own].update((parent, None) for parent in above if parent != own)
    for cycle in cycles({step: tuple(above) for step, above in parents.items()}):
        servers = [instances[step] for step in cycle if step in element]
        named = ", ".join(f"'{server.step_id}'" for server in servers)
        message = (
            f"the servers {named} would wait for each other: what reads the one comes after what "
            f"reads the other ({_IN_ONE_JOB})"
        )
        yield servers[0], "after", message
