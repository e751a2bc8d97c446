"""Arguments that several commands share, and what the shell offers for them. Light."""

from __future__ import annotations

from pathlib import Path

import click
from click.shell_completion import CompletionItem

from nexa_hpc.cli.session import Session
from nexa_hpc.core.runs import Run, all_runs, find_run
from nexa_hpc.errors import NexaError


def _complete_run(
    ctx: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    names = {name for run in _runs(ctx) for name in (run.id, run.pipeline)}
    offered = [CompletionItem(name) for name in sorted(names) if name.startswith(incomplete)]
    return [*offered, CompletionItem(incomplete, type="file")]


def _complete_step(
    ctx: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    try:
        run = find_run(_session(ctx).paths, ctx.params.get("run"))
        steps = run.instances
    except (NexaError, OSError):
        return []
    return [CompletionItem(step) for step in steps if step.startswith(incomplete)]


def complete_point(
    ctx: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Offer the labels of the points of a run."""
    try:
        points = find_run(_session(ctx).paths, ctx.params.get("run")).points
    except (NexaError, OSError):
        return []
    return [CompletionItem(p.label) for p in points if p.label.startswith(incomplete)]


def _session(ctx: click.Context) -> Session:
    # No command has run while a shell completes, so there is no session yet.
    project = ctx.find_root().params.get("project")
    return Session(Path(project) if project else None)


def _runs(ctx: click.Context) -> list[Run]:
    try:
        return all_runs(_session(ctx).paths)
    except (NexaError, OSError):
        return []


RUN_ARGUMENT = click.argument("run", required=False, shell_complete=_complete_run)
RUN_OPTION = click.option(
    "--run", metavar="RUN", shell_complete=_complete_run, help="A run's id, its pipeline or file."
)
STEP_ARGUMENT = click.argument("step", shell_complete=_complete_step)
FILE_ARGUMENT = click.argument("file", type=click.Path(path_type=Path))
POINT_OPTION = click.option(
    "--point",
    "points",
    multiple=True,
    metavar="POINT",
    shell_complete=complete_point,
    help="Only this point of a sweep: its label, a part of it, or its name. May be repeated.",
)
STEP_OPTION = click.option(
    "--step",
    metavar="STEP",
    shell_complete=_complete_step,
    help="Only this step, at all points; or at one, as STEP@POINT.",
)
OVERRIDES_ARGUMENT = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
CONFIG_DIR_OPTION = click.option(
    "--config-dir",
    "config_dirs",
    multiple=True,
    type=click.Path(path_type=Path),
    help="One more folder of configuration, above the project's configs/.",
)
FROM_OPTION = click.option(
    "--from", "from_step", required=True, metavar="STEP", shell_complete=_complete_step
)
