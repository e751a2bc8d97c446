"""`why`: why a step runs or is skipped, and how it differs from its last other result."""

from __future__ import annotations

import json

import click

from nexa_hpc.cli.completion import RUN_ARGUMENT, STEP_ARGUMENT
from nexa_hpc.cli.one_step import AT_OPTION, one_of
from nexa_hpc.cli.session import Session
from nexa_hpc.core.artifacts import look
from nexa_hpc.core.decisions import in_words
from nexa_hpc.core.history import History
from nexa_hpc.core.instances import Instance
from nexa_hpc.core.keys import differences
from nexa_hpc.core.paths import ProjectPaths
from nexa_hpc.core.quoting import printable
from nexa_hpc.core.runs import Run
from nexa_hpc.pipeline import Pipeline


@click.command()
@STEP_ARGUMENT
@RUN_ARGUMENT
@AT_OPTION
@click.option("--key", "show_key", is_flag=True, help="Print the whole document behind the key.")
@click.pass_obj
def why(session: Session, step: str, run: str | None, point: str | None, show_key: bool) -> None:
    """Explain what a run of the pipeline, as its file is now, would do with STEP, and why.

    Shows each field in which the step's key differs from that of its last other result.

    \b
    Example:
      nexa-hpc why train
    """
    found = session.find_run(run)
    plan = Pipeline.from_run(found).plan()
    step = one_of(plan, step, point, hint=f"nexa-hpc status {found.id}")
    instance = plan.instances[step]
    print(f"{step}: {instance.action}: {printable(instance.reason)}")
    print(f"key: {instance.key}")
    if show_key:
        print(json.dumps(instance.document, indent=2, ensure_ascii=False))
    if not instance.effect:
        _explain(found, instance)


def _explain(run: Run, instance: Instance) -> None:
    history = History(run.place.pipeline, run.paths)
    last = history.last(instance.step, other_than=instance.key)
    if last is None:
        print("no other result of this step is known")
        return
    changed = differences(last.document, instance.document)
    print(f"against its last other result (key {last.key[:8]}…):")
    for difference in changed:
        print(f"  {in_words(difference, instance)}")
    for line in _beside_the_key(run.paths, last, instance):
        print(f"  not in the key: {line}")


def _beside_the_key(paths: ProjectPaths, last: Instance, instance: Instance) -> list[str]:
    """Return how the requests differ in what changes no key: resources and the rest of `env`."""
    recorded = [look(path).artifact for path in last.artifact_paths(paths).values()]
    resources = next((a.meta.get("resources") for a in recorded if a is not None), last.resources)
    old = {"resources": resources, "env": last.env}
    new = {"resources": instance.resources, "env": instance.env}
    in_key = ("env.variables", "env.container")
    return [str(d) for d in differences(old, new) if not d.field.startswith(in_key)]
