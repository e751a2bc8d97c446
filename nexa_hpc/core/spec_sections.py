"""The sections of a step in a pipeline document (inputs, resources, environment), and field types.

Frozen pydantic models. Called by `spec`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    ValidationError,
    model_validator,
)

from nexa_hpc.core.spec_problems import (
    NAME_PATTERN,
    PATH_PATTERN,
    VARIABLE_PATTERN,
    translate,
)
from nexa_hpc.errors import SpecError

if TYPE_CHECKING:
    Json = Any
else:
    Json = JsonValue


def path_text(value: Any) -> Any:
    """Return a Path as text, anything else as it is."""
    if isinstance(value, str):
        return value
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def nothing_is_empty(value: Any) -> Any:
    """Return an empty mapping for None: `params:` whose last entry was commented out."""
    return {} if value is None else value


def _scalar(value: Any) -> Any:
    if isinstance(value, (dict, list)):
        raise ValueError("expected one plain value, not a list or a mapping")
    return value


Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN, max_length=64)]
Variable = Annotated[str, StringConstraints(pattern=VARIABLE_PATTERN)]
PathText = Annotated[str, BeforeValidator(path_text), StringConstraints(pattern=PATH_PATTERN)]
Text = Annotated[str, StringConstraints(min_length=1)]
Scalar = Annotated[Json, AfterValidator(_scalar)]
Count = Annotated[int, Field(gt=0)]
CountOrZero = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(gt=0)]


class Frozen(BaseModel):
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


class InputSpec(Frozen):
    """One input of a step: where it is, and how it enters the step's key.

    Or, for a step of a whole sweep, the result of `step` at the best of the points.
    """

    path: PathText = ""
    """With `step`: a path inside its result; empty for the whole folder."""
    digest: Literal["content", "stat", "none"] = "content"
    step: Name | None = None
    metric: Text | None = None
    """By which the best point is chosen, in the `metrics.json` of `step`, or of another step whose
    id comes first: `eval.accuracy`."""
    mode: Literal["max", "min"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: Any) -> Any:
        value = path_text(value)
        if isinstance(value, str):
            return {"path": value}
        if isinstance(value, InputSpec):
            return value
        if isinstance(value, Mapping):
            return value
        raise ValueError(
            "expected a path, {path: …, digest: content | stat | none}, or "
            "{step: …, metric: …, mode: max | min}"
        )

    @model_validator(mode="after")
    def _one_form(self) -> InputSpec:
        choosing = {"step": self.step, "metric": self.metric, "mode": self.mode}
        absent = [name for name, value in choosing.items() if value is None]
        if len(absent) == len(choosing):
            if not self.path:
                raise ValueError("write its `path`, or {step: …, metric: …, mode: max | min}")
        elif absent:
            raise ValueError(f"the best point is chosen by step, metric and mode: no {absent[0]}")
        elif self.digest != "content":
            raise ValueError("`digest` is for paths; a step's result is known by its key")
        return self


class SlurmSpec(Frozen):
    """What only Slurm understands."""

    extra: dict[str, Scalar] = Field(default_factory=dict)
    """Options of sbatch as they are, without the dashes."""


# Frozen, hence shared: pydantic would copy a plain default deeply, for each of ten thousand steps.
NO_SLURM: SlurmSpec = SlurmSpec()


class ResourcesSpec(Frozen):
    """What a step asks of the machine, in Slurm's and submitit's words; all of it optional."""

    nodes: Count | None = None
    tasks_per_node: Count | None = None
    cpus_per_task: Count | None = None
    gpus_per_node: CountOrZero | None = None
    gpus_per_task: CountOrZero | None = None
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
    slurm: SlurmSpec = Field(default_factory=lambda: NO_SLURM)

    @model_validator(mode="after")
    def _one_kind_of_memory(self) -> ResourcesSpec:
        _at_most_one(self, ("mem_gb", "mem_per_cpu_gb", "mem_per_gpu_gb"))
        return self


class EnvSpec(Frozen):
    """How a step's process is started."""

    name: Name | None = None
    """An environment that `env create` has made."""
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
        _at_most_one(self, ("name", "venv", "conda", "python"))
        return self


def _at_most_one(model: BaseModel, names: Sequence[str]) -> None:
    given = [name for name in names if getattr(model, name) is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} exclude each other; keep one")


NO_RESOURCES: ResourcesSpec = ResourcesSpec()
NO_ENV: EnvSpec = EnvSpec()
