"""The one instance of a step that a command is about, at a point of a sweep. Light."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import click

from nexa_hpc.cli.completion import complete_point
from nexa_hpc.core.instances import Instance
from nexa_hpc.core.points import Point, find_instances
from nexa_hpc.errors import UnknownNameError

AT_OPTION = click.option(
    "--point",
    metavar="POINT",
    shell_complete=complete_point,
    help="At this point of a sweep: its label, a part of it, or its name.",
)


class Planned(Protocol):
    """A run or a plan."""

    @property
    def instances(self) -> Mapping[str, Instance]:
        """By their names."""

    @property
    def points(self) -> Sequence[Point]:
        """Of a sweep."""


def one_of(of: Planned, step: str, point: str | None, *, hint: str) -> str:
    """Return the name of the one instance of `step`, at `point` where there are points.

    Raises UnknownNameError, with the hint, also where several are meant.
    """
    word = step if point is None else f"{step}@{point}"
    try:
        names = list(find_instances(of.instances, of.points, word))
    except UnknownNameError as error:
        raise UnknownNameError(str(error), hint=hint) from error
    if len(names) == 1:
        return names[0]
    raise UnknownNameError(
        f"step '{step}' is there at {len(names)} points: {', '.join(names[:3])} …",
        hint="say which: --point LABEL, or the whole name as `nexa-hpc status` has it",
    )
