"""The pipeline document as typed, frozen models: what may be written, and nothing else.

`load_pipeline` reads a file, `parse_pipeline` a Document; both report every problem at once, as one
SpecError. `Step` is also the public class of the Python interface. Values are checked, never filled
in or resolved here: `${…}` stays as it is written. Called by planning and the public interface.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    PlainValidator,
    StringConstraints,
    ValidationError,
    model_validator,
)

from nexa_hpc.core.document import Document, read_document
from nexa_hpc.core.handlers import SINGLE_INPUT, SINGLE_OUTPUT
from nexa_hpc.core.spec_problems import (
    NAME_PATTERN,
    NAME_RULE,
    PATH_PATTERN,
    VARIABLE_PATTERN,
    graph_problems,
    top_level_problems,
    translate,
)
from nexa_hpc.errors import Problem, SpecError

if TYPE_CHECKING:
    Json = Any
    PathLike = str | os.PathLike[str]
else:
    Json = JsonValue

RESERVED_PIPELINE_NAMES = frozenset({"records", "work", "digests", "serve"})
"""The folders that `.nexa_state` keeps beside those of the pipelines."""


def _path_text(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _nothing_is_empty(value: Any) -> Any:
    # `params:` with nothing after it is how people comment out the last entry.
    return {} if value is None else value


def _scalar(value: Any) -> Any:
    if isinstance(value, (dict, list)):
        raise ValueError("expected one plain value, not a list or a mapping")
    return value


Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN, max_length=64)]
Variable = Annotated[str, StringConstraints(pattern=VARIABLE_PATTERN)]
PathText = Annotated[str, BeforeValidator(_path_text), StringConstraints(pattern=PATH_PATTERN)]
Text = Annotated[str, StringConstraints(min_length=1)]
Scalar = Annotated[Json, AfterValidator(_scalar)]
Count = Annotated[int, Field(gt=0)]
CountOrNone = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(gt=0)]


class _Frozen(BaseModel):
    """Strict: `"4"` is no number and `yes` no text, so that what is meant is what is written."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    if not TYPE_CHECKING:

        def __init__(self, **fields: Any) -> None:
            try:
                super().__init__(**fields)
            except ValidationError as error:
                raise SpecError(translate(error, type(self), fields, None)) from error

        # Tells pydantic that validation need not call it: a document's steps are built without it.
        __init__.__pydantic_base_init__ = True


class InputSpec(_Frozen):
    """One input of a step: where it is, and how it enters the step's key."""

    path: PathText
    digest: Literal["content", "stat", "none"] = "content"

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: Any) -> Any:
        value = _path_text(value)
        if isinstance(value, str):
            return {"path": value}
        if isinstance(value, Mapping):
            if "step" in value or "metric" in value:
                message = "the best point of a sweep ({step, metric, mode}) is not in this version"
                raise ValueError(message)
            return value
        raise ValueError("expected a path, or {path: …, digest: content | stat | none}")


class SlurmSpec(_Frozen):
    """What only Slurm understands."""

    extra: dict[str, Scalar] = Field(default_factory=dict)
    """Options of sbatch as they are, without the dashes."""


class ResourcesSpec(_Frozen):
    """What a step asks of the machine, in Slurm's and submitit's words; all of it optional."""

    nodes: Count | None = None
    tasks_per_node: Count | None = None
    cpus_per_task: Count | None = None
    gpus_per_node: CountOrNone | None = None
    gpus_per_task: CountOrNone | None = None
    mem_gb: Amount | None = None
    mem_per_cpu_gb: Amount | None = None
    mem_per_gpu_gb: Amount | None = None
    timeout_min: Count | None = None
    signal_delay_s: Count | None = None
    array_parallelism: Count | None = None
    partition: Text | None = None
    account: Text | None = None
    qos: Text | None = None
    constraint: Text | None = None
    reservation: Text | None = None
    gres: Text | None = None
    nodelist: Text | None = None
    exclude: Text | None = None
    exclusive: bool | None = None
    slurm: SlurmSpec = Field(default_factory=SlurmSpec)

    @model_validator(mode="after")
    def _one_kind_of_memory(self) -> ResourcesSpec:
        _at_most_one(self, ("mem_gb", "mem_per_cpu_gb", "mem_per_gpu_gb"))
        return self


class EnvSpec(_Frozen):
    """How a step's process is started."""

    name: Name | None = None
    venv: PathText | None = None
    conda: PathText | None = None
    python: PathText | None = None
    modules: list[Text] = Field(default_factory=list)
    container: Text | None = None
    setup: Annotated[
        list[Text], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)
    ] = Field(default_factory=list)
    """Lines of shell run before the step, literally."""
    variables: dict[Variable, str] = Field(default_factory=dict)
    secrets: list[Variable] = Field(default_factory=list)
    """Names of variables handed on from the submitting shell, never their values."""

    @model_validator(mode="after")
    def _one_interpreter(self) -> EnvSpec:
        _at_most_one(self, ("venv", "conda", "python"))
        return self


def _at_most_one(model: BaseModel, names: Sequence[str]) -> None:
    given = [name for name in names if getattr(model, name) is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} exclude each other; keep one")


def _declared_inputs(value: Any) -> Any:
    if value is None:
        return {}
    value = _path_text(value)
    if isinstance(value, str):
        return {SINGLE_INPUT: value}
    if isinstance(value, list):
        raise ValueError("expected a path, or a mapping of names to paths: write `in: {config: …}`")
    return value


def _declared_out(value: Any) -> str | dict[str, str] | None:
    value = _path_text(value)
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, Mapping):
        raise ValueError("expected a path, or a mapping of names to paths: write `out: {model: …}`")
    if not value:
        raise ValueError("an empty mapping names no folder; leave `out` away")
    out = {name: _path_text(path) for name, path in value.items()}
    for name, path in out.items():
        if not isinstance(name, str) or len(name) > 64 or not re.fullmatch(NAME_PATTERN, name):
            raise ValueError(f"the name '{name}': {NAME_RULE}")
        if not isinstance(path, str):
            raise ValueError(f"'{name}' must be a path, as text")
    return out


def _step_ids(value: Any) -> Any:
    if isinstance(value, str):
        raise ValueError(f"expected a list of step ids, got text: write `after: [{value}]`")
    return value


def _no_sweep(value: str | None) -> str | None:
    if value is not None:
        raise ValueError("steps of a whole sweep arrive with sweeps; not in this version")
    return value


def _free_name(value: str) -> str:
    if value in RESERVED_PIPELINE_NAMES:
        raise ValueError(f"'{value}' is a folder of .nexa_state itself; choose another name")
    return value


class Step(_Frozen):
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
    params: Annotated[dict[str, Json], BeforeValidator(_nothing_is_empty)] = Field(
        default_factory=dict
    )
    after: Annotated[list[Name] | None, BeforeValidator(_step_ids)] = None
    """None: the step before it. An empty list: nothing."""
    cache_hint: Scalar = None
    resources: Annotated[ResourcesSpec, BeforeValidator(_nothing_is_empty)] = Field(
        default_factory=ResourcesSpec
    )
    env: Annotated[EnvSpec, BeforeValidator(_nothing_is_empty)] = Field(default_factory=EnvSpec)
    labels: Annotated[dict[Name, str], BeforeValidator(_nothing_is_empty)] = Field(
        default_factory=dict
    )
    key_resources: bool = False
    scope: Annotated[Literal["sweep"] | None, AfterValidator(_no_sweep)] = None

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


class PipelineSpec(_Frozen):
    """A whole pipeline, as declared."""

    name: Annotated[Name, AfterValidator(_free_name)]
    labels: Annotated[dict[Name, str], BeforeValidator(_nothing_is_empty)] = Field(
        default_factory=dict
    )
    steps: Annotated[tuple[Step, ...], Field(strict=False), AfterValidator(_some_steps)]


def load_pipeline(path: Path) -> tuple[PipelineSpec, Document]:
    """Return the pipeline in the file `path`, and its Document; raises SpecError (all problems)."""
    document = read_document(path)
    return parse_pipeline(document), document


def parse_pipeline(document: Document) -> PipelineSpec:
    """Return the pipeline in `document`; raises SpecError with all problems.

    Where it returns, graph and `out`s are still to be checked (`check_graph`, `check_outs`); where
    it raises, the problems of the graph are among those it reports.
    """
    problems = top_level_problems(document, PipelineSpec)
    raw = document.value.get("pipeline")
    if "pipeline" in document.value:
        try:
            # by_name: `inputs` is the Python word; in a document, only `in` is right.
            spec = PipelineSpec.model_validate(raw, by_alias=True, by_name=False)
            if not problems:
                return spec
        except ValidationError as error:
            problems += translate(error, PipelineSpec, raw, document)
            problems += graph_problems(raw, document)
    raise SpecError(sorted(problems, key=_place))


def _place(problem: Problem) -> int:
    return problem.line or 0


def to_json(step: Step) -> dict[str, Any]:
    """Return `step` in the document's own words, as plain JSON, without what is at its default.

    `Step.model_validate` of the result gives an equal step.
    """
    fields = step.model_dump(by_alias=True, exclude_defaults=True)
    if "in" in fields:
        fields["in"] = {
            name: value if len(value) > 1 else value["path"] for name, value in fields["in"].items()
        }
    return fields
