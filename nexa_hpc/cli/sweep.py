"""`nexa-hpc sweep …`: one pipeline at many points. A file for each command; loaded when called."""

from __future__ import annotations

import click

from nexa_hpc.cli.lazy import LazyGroup

COMMANDS = {
    "run": ("nexa_hpc.cli.run:sweep_run", "Run a pipeline at every point; the same as run -m."),
    "show": ("nexa_hpc.cli.sweep_show:show", "Show points, overrides, metrics; the best."),
}


@click.group("sweep", cls=LazyGroup, table=COMMANDS)
def group() -> None:
    """One pipeline at many points, and what came of each.

    \b
    Example:
      nexa-hpc sweep run pipelines/general_e2e.yaml steps.train.params.seed=1,2,3
      nexa-hpc sweep show
    """
