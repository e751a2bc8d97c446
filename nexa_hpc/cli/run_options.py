"""The options of the commands that plan and drive."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

SCHEDULER = click.option(
    "--scheduler",
    type=click.Choice(["local", "slurm", "k8s"]),
    help="Run every step there, whatever it declares; changes no key.",
)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON lines, for scripts.")
JOBS = click.option(
    "-j",
    "--jobs",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="How many independent steps run side by side, each in a process of its own.",
)
WAIT = click.option(
    "--wait/--no-wait",
    default=False,
    help="Follow what Slurm has to its end; Ctrl-C only ends the following.",
)
MULTIRUN = click.option(
    "-m",
    "--multirun",
    is_flag=True,
    help="A run at every point: overrides may sweep (a=1,2), and the file's `sweep:` does.",
)
_COUNT = click.IntRange(min=1)


def policy_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that override fields of configs/scheduler/slurm.yaml."""
    for option in (
        click.option(
            "--max-running", type=_COUNT, help="How many elements of the run may run at a time."
        ),
        click.option(
            "--canary", type=_COUNT, help="How many instances of each step run before the others."
        ),
        click.option(
            "--stop-after-failures", type=_COUNT, help="Stop the run when so many steps failed."
        ),
        click.option(
            "--points-per-element",
            type=_COUNT,
            help="How many independent steps or chains one element runs, one after the other.",
        ),
    ):
        command = option(command)
    return command


ADOPT = click.option(
    "--adopt", is_flag=True, help="Take over a pipeline name that another file used last."
)


def policy_fields(given: Mapping[str, int | None]) -> dict[str, Any]:
    """Return the fields of the policy that options name."""
    found: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if "stop_after_failures" in found:
        found["stop_after"] = {"failures": found.pop("stop_after_failures")}
    return found
