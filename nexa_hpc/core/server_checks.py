"""What can be wrong with steps that serve, and with those that read their servers, taken together.

What is wrong with the params of one is its handler's to say, and which of them share an element in
Slurm is told by `server_elements`. Called by `checks`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from nexa_hpc.core.answering import is_loopback
from nexa_hpc.core.endpoints import DRY_RUN, KEEP

if TYPE_CHECKING:
    from nexa_hpc.core.checks import Drafts, PlanRequest
    from nexa_hpc.core.spec import Step


def check_servers(request: PlanRequest, drafts: Drafts) -> None:
    """Note in `drafts` what is wrong; all references are known."""
    steps = {step.id: step for step in request.spec.steps}
    read = _check_readers(request, drafts, steps)
    for step in request.spec.steps:
        if step.id not in drafts.handlers or not drafts.handlers[step.id].serves:
            continue
        is_job = request.scheduler_of(step) == "slurm"
        if is_job and step.params.get(KEEP):
            _check_kept(request, drafts, step)
        if step.id not in read and not step.params.get(KEEP) and not step.params.get(DRY_RUN):
            message = "no step reads it, so it would be taken down at once; say `keep: true`"
            drafts.problems.append(request.problem(step, "params", message))


def _check_kept(request: PlanRequest, drafts: Drafts, step: Step) -> None:
    """Note what keeps a server that stays in Slurm from being there for other machines."""
    if step.params.get("token") is False:
        message = "a server that stays in Slurm is there for other machines, and has a token"
        drafts.problems.append(request.problem(step, "params.token", message))
    if is_loopback(str(step.params.get("host", ""))):
        message = "a server that stays in Slurm is there for other machines: leave it away"
        drafts.problems.append(request.problem(step, "params.host", message))


def _check_readers(request: PlanRequest, drafts: Drafts, steps: Mapping[str, Step]) -> set[str]:
    """Check the steps that read servers, and return whose servers those are."""
    read: set[str] = set()
    for step in request.spec.steps:
        for reference in drafts.references[step.id]:
            if reference.kind != "server" or reference.step is None:
                continue
            read.add(reference.step)
            if steps[reference.step].params.get(DRY_RUN):
                message = f"step '{reference.step}' is a dry run: it starts no server"
                drafts.problems.append(request.problem(step, reference.place, message))
    return read
