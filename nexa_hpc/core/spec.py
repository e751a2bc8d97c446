"""The pipeline document as typed, frozen models: what may be written, and nothing else.

`parse_pipeline` takes a Document and reports every problem at once, as one SpecError. `Step` is
also the public class of the Python interface. Values are checked, never filled in or resolved here:
`${…}` stays as it is written. Called by planning and the public interface.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
)

from nexa_hpc.core.collector import without_gc
from nexa_hpc.core.document import Document
from nexa_hpc.core.instances import SINGLE_INPUT, SINGLE_OUTPUT
from nexa_hpc.core.paths import RESERVED_PIPELINE_NAMES
from nexa_hpc.core.quoting import shown
from nexa_hpc.core.retries import NO_RETRY, RetrySpec
from nexa_hpc.core.spec_problems import (
    NAME_PATTERN,
    NAME_RULE,
    graph_problems,
    top_level_problems,
    translate,
)
from nexa_hpc.core.spec_sections import (
    NO_ENV,
    NO_RESOURCES,
    EnvSpec,
    Frozen,
    InputSpec,
    Json,
    Name,
    ResourcesSpec,
    Scalar,
    Text,
    nothing_is_empty,
    path_text,
)
from nexa_hpc.errors import Problem, SpecError

if TYPE_CHECKING:
    PathLike = str | os.PathLike[str]


def _declared_inputs(value: Any) -> Any:
    if value is None:
        return {}
    value = path_text(value)
    if isinstance(value, str):
        return {SINGLE_INPUT: value}
    if isinstance(value, list):
        raise ValueError("expected a path, or a mapping of names to paths: write `in: {config: …}`")
    return value


def _declared_out(value: Any) -> str | dict[str, str] | None:
    value = path_text(value)
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, Mapping):
        raise ValueError("expected a path, or a mapping of names to paths: write `out: {model: …}`")
    if not value:
        raise ValueError("an empty mapping names no folder; leave `out` away")
    out = {name: path_text(path) for name, path in value.items()}
    for name, path in out.items():
        if not isinstance(name, str) or len(name) > 64 or not re.fullmatch(NAME_PATTERN, name):
            raise ValueError(f"the name '{shown(str(name))}': {NAME_RULE}")
        if not isinstance(path, str):
            raise ValueError(f"'{shown(name)}' must be a path, as text")
    return out


def _step_ids(value: Any) -> Any:
    if isinstance(value, str):
        raise ValueError(f"expected a list of step ids, got text: write `after: [{value}]`")
    return list(value) if isinstance(value, tuple) else value


def _free_name(value: str) -> str:
    if value in RESERVED_PIPELINE_NAMES:
        raise ValueError(f"'{value}' is a folder of .nexa_state itself; choose another name")
    return value


class Step(Frozen):
    """One step of a pipeline, as declared."""

    id: Name
    uses: Text
    backend: Text | None = None
    scheduler: Literal["local", "slurm", "k8s"] | None = None
    """None: the one that is composed or chosen on the command line."""
    inputs: Annotated[dict[Name, InputSpec], BeforeValidator(_declared_inputs)] = Field(
        default_factory=dict, validation_alias="in", serialization_alias="in"
    )
    """`in`: name -> input; a single path is named `input`."""
    out: Annotated[str | dict[str, str] | None, PlainValidator(_declared_out)] = None
    """As declared; `outputs` is the same by name."""
    params: Annotated[dict[str, Json], BeforeValidator(nothing_is_empty)] = Field(
        default_factory=dict
    )
    after: Annotated[list[Name] | None, BeforeValidator(_step_ids)] = None
    """None: the step before it. An empty list: nothing."""
    cache_hint: Scalar = None
    resources: Annotated[ResourcesSpec, BeforeValidator(nothing_is_empty)] = Field(
        default_factory=lambda: NO_RESOURCES
    )
    env: Annotated[EnvSpec, BeforeValidator(nothing_is_empty)] = Field(
        default_factory=lambda: NO_ENV
    )
    labels: Annotated[dict[Name, str], BeforeValidator(nothing_is_empty)] = Field(
        default_factory=dict
    )
    key_resources: bool = False
    retry: Annotated[RetrySpec, BeforeValidator(nothing_is_empty)] = Field(
        default_factory=lambda: NO_RETRY
    )
    light: bool = False
    """Takes seconds and hardly any memory: may run in the element of the step before it."""
    snapshot: bool = False
    """Run the project's whole tracked source as it was at submission, not only `code`."""
    scope: Literal["sweep"] | None = None
    """`sweep`: once, when all points are done, and not at each of them."""

    model_config = ConfigDict(populate_by_name=True)

    if TYPE_CHECKING:
        # The forms that a caller may write; the fields hold what is made of them.
        def __init__(
            self,
            *,
            id: str,  # noqa: A002  the word of the document
            uses: str,
            backend: str | None = None,
            scheduler: str | None = None,
            inputs: PathLike | Mapping[str, PathLike | InputSpec | Mapping[str, str]] | None = None,
            out: PathLike | Mapping[str, PathLike] | None = None,
            params: Mapping[str, Any] | None = None,
            after: Sequence[str] | None = None,
            cache_hint: Any = None,
            resources: ResourcesSpec | Mapping[str, Any] | None = None,
            env: EnvSpec | Mapping[str, Any] | None = None,
            labels: Mapping[str, str] | None = None,
            key_resources: bool = False,
            retry: RetrySpec | Mapping[str, Any] | None = None,
            light: bool = False,
            snapshot: bool = False,
            scope: str | None = None,
        ) -> None: ...

    @property
    def outputs(self) -> dict[str, str]:
        """The declared outputs by name; a single path is named `out`."""
        if self.out is None:
            return {}
        return {SINGLE_OUTPUT: self.out} if isinstance(self.out, str) else self.out


def _some_steps(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    if not steps:
        raise ValueError("a pipeline has at least one step")
    return steps


class PipelineSpec(Frozen):
    """A whole pipeline, as declared."""

    name: Annotated[Name, AfterValidator(_free_name)]
    labels: Annotated[dict[Name, str], BeforeValidator(nothing_is_empty)] = Field(
        default_factory=dict
    )
    steps: Annotated[tuple[Step, ...], Field(strict=False), AfterValidator(_some_steps)]


def parse_pipeline(document: Document) -> PipelineSpec:
    """Return the pipeline in `document`; raises SpecError with all problems.

    Where it returns, graph and `out`s are still to be checked (`check_graph`, `check_outs`); where
    it raises, the problems of the graph are among those it reports.
    """
    problems = top_level_problems(document, PipelineSpec)
    raw = document.value.get("pipeline")
    if "pipeline" in document.value:
        try:
            with without_gc():
                # by_name: `inputs` is the Python word; in a document, only `in` is right.
                spec = PipelineSpec.model_validate(raw, by_alias=True, by_name=False)
            if not problems:
                return spec
        except ValidationError as error:
            problems += translate(error, PipelineSpec, raw, document)
            problems += graph_problems(raw, document)
    raise SpecError(sorted(problems, key=_place))


def _place(problem: Problem) -> float:
    return math.inf if problem.line is None else problem.line


def to_json(step: Step) -> dict[str, Any]:
    """Return `step` in the document's own words, as plain JSON, without what is at its default.

    `Step.model_validate` of the result gives an equal step. Its parts may be the step's own: do not
    change them.
    """
    # By hand, as pydantic's own dump takes four times as long and would copy all params.
    fields: dict[str, Any] = {}
    for name, default in _STEP_DEFAULTS.items():
        value = getattr(step, name)
        if name not in step.model_fields_set or value == default:
            continue
        if name == "inputs":
            fields["in"] = {key: _input_to_json(declared) for key, declared in value.items()}
        else:
            is_model = isinstance(value, BaseModel)
            fields[name] = value.model_dump(exclude_defaults=True) if is_model else value
    return fields


_STEP_DEFAULTS: dict[str, Any] = {
    name: info.get_default(call_default_factory=True) for name, info in Step.model_fields.items()
}


def _input_to_json(declared: InputSpec) -> str | dict[str, str]:
    if declared.digest == "content" and declared.step is None:
        return declared.path
    return declared.model_dump(exclude_defaults=True)
