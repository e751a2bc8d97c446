"""What can still be checked of a document that has malformed parts, so that one try tells all.

The malformed parts are left out, and what remains is checked like a whole document; only problems
of what was left out are kept quiet, for they would be echoes. Called by the public interface when
`parse_pipeline` has raised.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from nexa_hpc.core.document import Document
from nexa_hpc.core.spec import PipelineSpec
from nexa_hpc.errors import Problem, SpecError

_STEP_DEPTH = 2
"""Where a step begins in a location: ("steps", 3, …)."""


def salvage(document: Document) -> tuple[PipelineSpec, set[tuple[str, str]]] | None:
    """Return the pipeline without its malformed parts, and (step id, key) of each part left out.

    None when a step cannot be told without them, or the pipeline itself is malformed.
    """
    raw: Any = document.value.get("pipeline")
    try:
        PipelineSpec.model_validate(raw, by_alias=True, by_name=False)
        locations: list[tuple[Any, ...]] = []
    except ValidationError as error:
        locations = [tuple(details["loc"]) for details in error.errors(include_url=False)]
    if not all(_is_in_step(location) for location in locations):
        return None
    rest = copy.deepcopy(raw)
    left_out = set()
    for location in locations:
        step = rest["steps"][location[1]]
        left_out.add((str(step.get("id")), str(location[_STEP_DEPTH])))
        _remove(step, location[_STEP_DEPTH:])
    try:
        return PipelineSpec.model_validate(rest, by_alias=True, by_name=False), left_out
    except ValidationError:
        return None


def with_further(
    error: SpecError, found: Iterable[Problem], left_out: set[tuple[str, str]]
) -> SpecError:
    """Return `error` together with what else was `found`, apart from echoes of what it says."""
    further = (problem for problem in found if not _is_echo(problem, left_out))
    problems = dict.fromkeys([*error.problems, *further])
    return SpecError(sorted(problems, key=lambda problem: problem.line or 0))


def _is_echo(problem: Problem, left_out: set[tuple[str, str]]) -> bool:
    """Return whether `problem` is about a part that was left out."""
    key = (problem.key or "").partition(".")[0]
    return (str(problem.step), key) in left_out


def _is_in_step(location: tuple[Any, ...]) -> bool:
    return location[:1] == ("steps",) and len(location) > _STEP_DEPTH


def _remove(step: dict[str, Any], location: tuple[Any, ...]) -> None:
    """Remove from `step` the smallest entry of a mapping that holds `location`, two levels deep."""
    key, inner = location[0], step.get(location[0])
    if isinstance(inner, dict) and len(location) > 1 and location[1] in inner:
        del inner[location[1]]
    else:
        step.pop(key, None)
