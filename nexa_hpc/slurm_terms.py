"""The terms for a new run: cluster facts and policy read from their files, and what they refuse.

Called by `pipeline`, before anything is written; recorded with the run by it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nexa_hpc.compose.origins import Origin, leaves
from nexa_hpc.compose.run_config import cluster_of, policy_of
from nexa_hpc.compose.site import SiteConfig, site_config
from nexa_hpc.core.cluster import SlurmPolicy
from nexa_hpc.core.planning import Plan
from nexa_hpc.core.retries import SLURM_RETRY
from nexa_hpc.core.snapshots import tracked
from nexa_hpc.core.spec_problems import translate
from nexa_hpc.errors import SchedulerError, UserError
from nexa_hpc.schedulers.slurm import requests
from nexa_hpc.schedulers.slurm.here import this_cluster
from nexa_hpc.schedulers.slurm.terms import Terms


def read_terms(root: Path, overrides: Mapping[str, Any], config: SiteConfig | None = None) -> Terms:
    """Return the terms for the project at `root` on the cluster of this host.

    `overrides` are fields of the policy; `config` is what the run was composed under. Raises
    SchedulerError where no cluster answers, SpecError for what is wrong in the files, UserError for
    what the site has locked.
    """
    name = this_cluster()
    if name is None:
        raise SchedulerError(
            "Slurm does not say which cluster this is", hint="nexa-hpc doctor, or `scontrol ping`"
        )
    config = (config if config is not None else site_config(root)).on(name)
    cluster = cluster_of(config, name).model_dump(mode="json", exclude_none=False)
    policy = policy_of(config).model_dump(mode="json")
    for path, value in leaves(overrides, ("scheduler",)).items() if overrides else ():
        config.refuse_locked(path, value, Origin("override", f"{path}={value}"), root)
    # As sbatch would take them from this shell; whoever advances the run has another.
    shell = requests.environment_defaults()
    cluster["defaults"] = requests.merged(shell, _given(cluster["defaults"]))
    policy["defaults"] = _given(policy["defaults"])
    standard = SLURM_RETRY.model_dump(mode="json", exclude_none=True)
    policy["retry"] = {**standard, **_given(policy["retry"])}
    return Terms(cluster, _overridden(policy, overrides))


def _overridden(policy: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return `policy` with fields replaced, those of its sections one by one.

    Raises UserError for a field that no policy has, or a value that it cannot have.
    """
    found = dict(policy)
    for name, value in overrides.items():
        is_section = isinstance(value, Mapping) and isinstance(policy.get(name), Mapping)
        found[name] = {**policy[name], **value} if is_section else value
    try:
        SlurmPolicy.model_validate(found)
    except ValidationError as error:
        problems = translate(error, SlurmPolicy, found, None)
        raise UserError("\n".join(f"policy: {problem}" for problem in problems)) from error
    return found


def refuse_folder(state: Path) -> None:
    """Raise UserError for a state folder that Slurm would take for another one.

    `%j` and the like stand for other texts in the names of files that jobs print into, and a
    backslash changes how such a name is read (sbatch(1), FILENAME PATTERN).
    """
    wrong = [character for character in "%\\" if character in str(state)]
    if wrong:
        raise UserError(
            f"the state folder {state} cannot be handed to Slurm: it has '{wrong[0]}' in its name",
            hint="rename the folder, or keep the state elsewhere: NEXA_HPC_STATE=FOLDER",
        )


def problems(terms: Terms, declared: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (key, message) for what a step that declares the resources `declared` cannot ask."""
    resources = terms.resources(declared)
    partitions = terms.cluster["partitions"]
    for name in str(resources.get("partition") or "").split(","):
        if name and partitions and name not in partitions:
            known = ", ".join(partitions)
            yield "resources.partition", f"no partition '{name}' on {terms.name} (it has: {known})"
    yield from requests.problems(resources, terms.limit_min(resources))


def refuse_untracked(plan: Plan, root: Path) -> None:
    """Raise UserError where a step wants a snapshot of the source, and git does not know which."""
    if any(i.snapshot and i.scheduler == "slurm" for i in plan.to_run()):
        tracked(root)


def refuse_stranded(plan: Plan) -> None:
    """Raise UserError for a heavy local step behind a Slurm one: nobody would run it."""
    # Step -> the nearest Slurm step that is above it and is to run; one pass in graph order.
    behind: dict[str, str] = {}
    for step, instance in plan.instances.items():
        above = next((behind[parent] for parent in instance.parents if parent in behind), None)
        if instance.action == "RUN" and instance.scheduler == "slurm":
            behind[step] = step
        elif above is not None:
            behind[step] = above
        is_heavy_local = instance.scheduler == "local" and not instance.light
        if above is not None and is_heavy_local and instance.action == "RUN":
            raise UserError(
                f"step '{step}' is local and comes after '{above}', which runs in Slurm: when that "
                "ends, no process of ours is on this host to run it",
                hint=f"give '{step}' `scheduler: slurm`, or `light: true` where it takes seconds: "
                "the advance job then runs it",
            )


def _given(fields: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: value for name, value in fields.items() if value is not None}
    if found.get("slurm") == {"extra": {}}:
        del found["slurm"]
    return found
