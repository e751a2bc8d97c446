"""What is wrong with a pipeline document, in our words: where it is, and what to write instead.

Pydantic finds the problems; its wording and its places are Python's. Here they become lines, step
ids, key paths and the nearest valid name. Called by `spec` alone.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from nexa_hpc.core.graph import Node, check_graph
from nexa_hpc.core.quoting import shown
from nexa_hpc.errors import Problem, nearest

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from nexa_hpc.core.document import Document

NAME_PATTERN = r"^\.*[A-Za-z0-9_-][A-Za-z0-9._-]*$"
PATH_PATTERN = r"^[^\x00-\x1f\x7f]+$"
VARIABLE_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]*$"
NAME_RULE = "a name has 1 to 64 characters of A-Z a-z 0-9 . _ - and not only dots"
_PATTERN_RULES = {
    NAME_PATTERN: NAME_RULE,
    PATH_PATTERN: "a path is not empty and has no control characters",
    VARIABLE_PATTERN: "the name of a variable has letters, digits and _, and no digit first",
}

# Words of neighbouring tools that no likeness of letters would lead to ours.
_MEANT = {
    "inputs": "in",
    "outputs": "out",
    "depends_on": "after",
    "dependencies": "after",
    "needs": "after",
    "handler": "uses",
    "args": "params",
    "with": "params",
}
_SUBSECTIONS = ("resources", "env")
_MAX_PROBLEMS = 100
Location = tuple[str | int, ...]


def translate(
    error: ValidationError,
    model: type[BaseModel],
    raw: Any,
    document: Document | None,
    place: Location = ("pipeline",),
) -> list[Problem]:
    """Return the problems that pydantic found in `raw`, the value meant for `model`.

    With a `document`, `raw` is what it holds at `place`.
    """
    found = error.errors(include_url=False)
    problems = [_problem(details, model, raw, document, place) for details in found[:_MAX_PROBLEMS]]
    if len(found) > _MAX_PROBLEMS:
        name = document.name if document is not None else None
        problems.append(Problem(f"and {len(found) - _MAX_PROBLEMS:,} problems more", file=name))
    return problems


def top_level_problems(document: Document, model: type[BaseModel]) -> list[Problem]:
    """Return what is wrong at the top of `document`, whose `pipeline` is meant for `model`."""

    def problem(key: str, message: str) -> Problem:
        return Problem(message, file=document.name, line=document.line_of((key,)), key=shown(key))

    problems = []
    for key in document.value:
        if key in ("defaults", "sweep"):
            message = f"a document with `{key}:` is composed: read its file by Pipeline.from_yaml"
            problems.append(problem(key, message))
        elif key != "pipeline" and not key.startswith("x-"):
            where = "; write it under `pipeline:`" if key in _fields(model) else ""
            hint = where or nearest(key, ["pipeline"])
            rest = " (allowed: pipeline, and x-… as a place for anchors)"
            problems.append(problem(key, f"unknown key '{shown(key)}'{hint}{rest}"))
    if "pipeline" not in document.value:
        problems.append(problem("pipeline", "missing: a document holds one `pipeline:`"))
    return problems


def graph_problems(raw: Any, document: Document) -> list[Problem]:
    """Return what is wrong with the graph of a pipeline whose steps may be malformed otherwise."""
    steps = raw.get("steps") if isinstance(raw, dict) else None
    if not isinstance(steps, list):
        return []
    return check_graph([_node(step, number) for number, step in enumerate(steps)], {}, document)


def _node(step: Any, number: int) -> Node:
    """Return what the graph can know of `step`; nothing where it cannot be read."""
    fields = step if isinstance(step, dict) else {}
    step_id, after = fields.get("id"), fields.get("after")
    readable = isinstance(after, list) and all(isinstance(parent, str) for parent in after)
    return Node(
        id=step_id if isinstance(step_id, str) else f"steps[{number}]",
        after=after if readable or after is None else (),
    )


def _problem(
    details: ErrorDetails,
    model: type[BaseModel],
    raw: Any,
    document: Document | None,
    place: Location,
) -> Problem:
    location = details["loc"]
    about_key = location[-1:] == ("[key]",)
    location = location[:-1] if about_key else location
    message = _message(details, model, location)
    if about_key and details["type"] != "string_pattern_mismatch":
        message = f"the name '{shown(str(location[-1]))}': {message}"
    # Below one param, pydantic's places speak of kinds of values that the document does not name.
    if "params" in location:
        location = location[: location.index("params") + 2]
    step, key = _step_and_key(location, model, raw)
    return Problem(
        message,
        file=document.name if document is not None else None,
        line=document.line_of((*place, *location)) if document is not None else None,
        step=step,
        key=key,
    )


def _step_and_key(
    location: Location, model: type[BaseModel], raw: Any
) -> tuple[str | None, str | None]:
    """Return the id of the step that `location` is in, and the path of keys inside of it."""
    step = raw
    rest = location
    if location[:1] == ("steps",) and len(location) > 1:
        step, rest = raw["steps"][location[1]], location[2:]
    elif "uses" not in model.model_fields:
        return None, _key_path(location)
    step_id = step.get("id") if isinstance(step, Mapping) else None
    if not isinstance(step_id, str):
        return None, _key_path(location)
    return shown(step_id), _key_path(rest)


def _key_path(location: Location) -> str | None:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return shown(text.lstrip(".")) or None


def _fields(model: type[BaseModel]) -> dict[str, Any]:
    """Return the fields of `model` by the names that a document gives them."""
    return {
        str(info.validation_alias or name): info.annotation
        for name, info in model.model_fields.items()
    }


def _model_at(model: type[BaseModel], location: Location) -> type[BaseModel]:
    """Return the model of the part at `location`; entries of lists and mappings have their own."""
    for part in location:
        model = _model_in(_fields(model).get(str(part))) or model
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_model_in(argument) for argument in typing.get_args(annotation))
    return next((model for model in found if model is not None), None)


def _message(details: ErrorDetails, model: type[BaseModel], location: Location) -> str:
    kind, value, limits = details["type"], details["input"], details.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown_key(str(location[-1]), _fields(_model_at(model, location[:-1])))
    if kind == "missing":
        return "missing"
    if kind == "value_error":
        return str(limits["error"])
    if kind == "string_pattern_mismatch":
        return f"'{shown(value)}': {_PATTERN_RULES[limits['pattern']]}"
    if kind == "literal_error":
        return f"expected {limits['expected']}, got {_describe(value)}" + nearest(
            value, str(limits["expected"]).replace("'", "").replace(" or ", ", ").split(", ")
        )
    if kind in _EXPECTED:
        return f"expected {_EXPECTED[kind](limits)}, got {_describe(value)}{_quoting(kind, value)}"
    return details["msg"][:1].lower() + details["msg"][1:]


def _unknown_key(key: str, fields: Mapping[str, Any]) -> str:
    return f"unknown key '{shown(key)}'{_meant(key, fields)} (allowed: {', '.join(fields)})"


def _meant(key: str, fields: Mapping[str, Any]) -> str:
    """Return what the writer of the unknown `key` most likely wanted, as the end of a sentence."""
    if _MEANT.get(key) in fields:
        return f"; did you mean '{_MEANT[key]}'?"
    for section in _SUBSECTIONS:
        inner = _model_in(fields.get(section))
        if inner is not None and key in _fields(inner):
            return f"; write it under `{section}:`"
    return nearest(key, fields)


_EXPECTED: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "string_type": lambda _: "text",
    "string_too_short": lambda _: "text that is not empty",
    "string_too_long": lambda limits: f"at most {limits['max_length']} characters",
    "int_type": lambda _: "a whole number",
    "int_from_float": lambda _: "a whole number",
    "float_type": lambda _: "a number",
    "finite_number": lambda _: "a finite number",
    "bool_type": lambda _: "true or false",
    "list_type": lambda _: "a list",
    "tuple_type": lambda _: "a list of steps, each beginning with `- id: …`",
    "dict_type": lambda _: "a mapping",
    "model_type": lambda _: "a mapping",
    "greater_than": lambda limits: f"more than {limits['gt']:g}",
    "greater_than_equal": lambda limits: f"at least {limits['ge']:g}",
}


def _quoting(kind: str, value: Any) -> str:
    """Return the advice to quote what YAML takes for a number or a boolean."""
    if kind != "string_type" or not isinstance(value, (bool, int, float)):
        return ""
    # Whether it was written as `yes`, `on` or `true` is not known here.
    return "; quote it if it is text" + ("" if isinstance(value, bool) else f': "{value}"')


def _describe(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the text '{shown(value)}'"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list" if value else "an empty list"
    return f"a Python {type(value).__name__}"
