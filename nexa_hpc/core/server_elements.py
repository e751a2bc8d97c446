"""Which steps share the element of a server in Slurm, and what that asks of their graph.

A server that a step starts in Slurm lives in that step's element, and the steps that read it run
there behind it, one after the other: no GPU waits while they queue, and nothing outlives the job.
So it starts when all that its readers need is there, and whatever comes between it and a reader
runs there as well. Called by planning (`share_elements`) and by whoever hands over or runs elements
(`elements_of`). Standard library alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from nexa_hpc.core.endpoints import DRY_RUN, KEEP, readers_of
from nexa_hpc.core.graph import cycles
from nexa_hpc.core.instances import Instance

if TYPE_CHECKING:
    from nexa_hpc.core.nodes import Node
    from nexa_hpc.errors import Problem

_OWN = ("timeout_min", "signal_delay_s", "array_parallelism")
"""Resources that a step has for itself, whichever element it runs in."""


def elements_of(instances: Mapping[str, Instance]) -> dict[str, str]:
    """Return instance -> the one that serves, itself perhaps, in whose element it runs."""
    readers = {
        step: [reader.step for reader in found]
        for step, found in readers_of(instances).items()
        if instances[step].scheduler == "slurm"
    }
    parents = {i.step: i.parents for i in instances.values()} if readers else {}
    return {step: server for server, found in _members(parents, readers).items() for step in found}


def _members(
    parents: Mapping[str, Iterable[str]], readers: Mapping[str, Sequence[str]]
) -> dict[str, list[str]]:
    """Return server -> what runs in its element: it, its readers, and all that is between."""
    children: dict[str, list[str]] = {}
    for step, above in parents.items() if readers else ():
        for parent in above:
            children.setdefault(parent, []).append(step)
    found = {}
    for server, reading in readers.items():
        below = _reached([server], children)
        between = {step: [p for p in parents[step] if p in below] for step in below}
        inside = _reached(reading, between)
        found[server] = [step for step in below if step == server or step in inside]
    return found


def _reached(start: Iterable[str], edges: Mapping[str, Iterable[str]]) -> dict[str, None]:
    """Return `start` and all that is reached from there, in the order in which it is met."""
    found = dict.fromkeys(start)
    waiting = list(found)
    while waiting:
        for step in edges.get(waiting.pop(), ()):
            if step not in found:
                found[step] = None
                waiting.append(step)
    return found


def share_elements(nodes: Sequence[Node]) -> list[Problem]:
    """Have each server in Slurm wait for what its readers wait for, and return what is wrong.

    Adds to the parents of `nodes`, which are then in graph order no more.
    """
    by_name = {node.name: node for node in nodes}
    readers: dict[str, list[str]] = {n.name: [] for n in nodes if _serves(n) and _in_slurm(n)}
    for node in nodes:
        for server in _servers_read(node):
            if server in readers:
                readers[server].append(node.name)
    problems = [problem for node in nodes for problem in _reads_elsewhere(node, by_name)]
    parents = {node.name: node.parents for node in nodes}
    members = _members(parents, readers)
    for server, inside in members.items():
        element = [by_name[name] for name in inside]
        problems += _problems(by_name[server], element, members)
        problems += _kept_above(by_name[server], element, nodes)
    if readers and not problems:
        for server, inside in members.items():
            outside = [p for name in inside for p in by_name[name].parents if p not in inside]
            by_name[server].parents.update(dict.fromkeys(outside))
        problems += _cycle_problems(by_name)
    return problems


def _serves(node: Node) -> bool:
    return node.handler.serves and not node.step.params.get(DRY_RUN)


def _in_slurm(node: Node) -> bool:
    return node.request.scheduler_of(node.step) == "slurm"


def _servers_read(node: Node) -> Iterator[str]:
    for reference in node.references:
        if reference.kind == "server" and reference.step is not None:
            yield reference.step


def _reads_elsewhere(node: Node, by_name: Mapping[str, Node]) -> Iterator[Problem]:
    """Yield where a step in Slurm reads a server that is not."""
    for name in _servers_read(node) if _in_slurm(node) else ():
        server = by_name[name]
        if _serves(server) and not _in_slurm(server):
            message = (
                f"it runs in Slurm, and reads the server of '{server.step.id}', which runs where "
                "the pipeline is driven: give both the same `scheduler`"
            )
            yield node.request.problem(node.step, "scheduler", message)


def _problems(
    server: Node, element: Sequence[Node], members: Mapping[str, Sequence[str]]
) -> Iterator[Problem]:
    """Yield what keeps the nodes of `element` from sharing it."""
    asked = _shared_resources(server)
    for node in element:
        where = f"it runs in the element of the server '{server.step.id}'"
        others = [s for s, inside in members.items() if node.name in inside and s != server.name]
        if not _in_slurm(node):
            message = f"{where}: say `scheduler: slurm`"
            if server.name not in _servers_read(node):
                message += ", or name in `after` what the steps really wait for: it comes between"
            yield node.request.problem(node.step, "scheduler", message)
        if others:
            message = (
                f"{where} and in that of '{others[0].partition('#')[0]}' as well: one step reads "
                "one server in Slurm (nexa-hpc sbatch allocation FILE runs all in one job)"
            )
            yield node.request.problem(node.step, "in" if node.step.inputs else "after", message)
        if max(node.view.resources.get(n) or 1 for n in ("nodes", "tasks_per_node")) > 1:
            message = "a server in Slurm, and what reads it, has one task on one node"
            yield node.request.problem(node.step, "resources", message)
        own = _shared_resources(node)
        differing = sorted(n for n in own if own[n] != asked.get(n))
        if differing:
            message = (
                f"{where}, which asks for another {', '.join(differing)}: leave it away here, or "
                f"ask for the same at '{server.step.id}'"
            )
            yield node.request.problem(node.step, f"resources.{differing[0]}", message)


def _shared_resources(node: Node) -> dict[str, object]:
    return {n: v for n, v in node.view.resources.items() if n not in _OWN and v is not None}


def _kept_above(server: Node, element: Sequence[Node], nodes: Sequence[Node]) -> Iterator[Problem]:
    """Yield what would wait for the end of an element that stays for its server."""
    if not server.step.params.get(KEEP):
        return
    inside = {node.name for node in element}
    for node in nodes:
        above = next((parent for parent in node.parents if parent in inside), None)
        if above is not None and node.name not in inside:
            message = (
                f"it would wait for '{above.partition('#')[0]}', whose job stays for the server of "
                f"'{server.step.id}' (`keep: true`): name in `after` what it really waits for"
            )
            yield node.request.problem(node.step, "after", message)


def _cycle_problems(by_name: Mapping[str, Node]) -> Iterator[Problem]:
    for cycle in cycles({name: tuple(node.parents) for name, node in by_name.items()}):
        servers = [by_name[name] for name in cycle if _serves(by_name[name])]
        named = ", ".join(f"'{node.step.id}'" for node in servers)
        message = (
            f"the servers {named} would wait for each other: what reads the one comes after what "
            "reads the other (nexa-hpc sbatch allocation FILE runs all in one job)"
        )
        yield servers[0].request.problem(servers[0].step, "after", message)
