"""What `hydra.launcher` says, checked: resources and retries as in a pipeline.

Called by `session`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from nexa_hpc.core.retries import RetrySpec
from nexa_hpc.core.spec_problems import translate
from nexa_hpc.core.spec_sections import Frozen, ResourcesSpec
from nexa_hpc.errors import UserError
from nexa_hpc.schedulers.slurm.terms import Terms
from nexa_hpc.slurm_terms import problems

_WHERE = "hydra.launcher"


@dataclass(frozen=True)
class Options:
    """What the jobs of a multirun ask for, as plain JSON."""

    resources: Mapping[str, Any]
    retry: Mapping[str, Any]
    max_num_timeout: int

    @classmethod
    def of(cls, given: Mapping[str, Any], terms: Terms) -> Options:
        """Return what `given`, the launcher's fields, asks for under `terms`.

        Raises UserError with every problem found.
        """
        names = ResourcesSpec.model_fields
        declared = _given({n: v for n, v in given.items() if n in names})
        found: list[str] = []
        resources = _checked(ResourcesSpec, declared, "", found)
        retry = _checked(RetrySpec, _given(given["retry"]), "retry.", found)
        times = int(given["max_num_timeout"])
        if times < 0:
            found.append(f"{_WHERE}.max_num_timeout: {times} is less than 0")
        if not found:
            found += [
                f"{_WHERE}.{key.removeprefix('resources.')}: {text}"
                for key, text in problems(terms, resources)
            ]
        if found:
            raise UserError(
                "\n".join(found), hint="python APP -m hydra/launcher=nexa_slurm --cfg hydra"
            )
        return cls(resources, retry, times)


def _given(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return `fields` without what was left out; in Hydra's schema that is None."""
    found = {n: _given(v) if isinstance(v, Mapping) else v for n, v in fields.items()}
    return {n: v for n, v in found.items() if v is not None and v != {}}


def _checked(
    model: type[Frozen], value: dict[str, Any], below: str, found: list[str]
) -> dict[str, Any]:
    """Return `value` as `model` has it, without what is left open; add its problems to `found`."""
    try:
        checked = model.model_validate(value)
    except ValidationError as error:
        for problem in translate(error, model, value, None, ()):
            key = f".{below}{problem.key}" if problem.key else ""
            found.append(f"{_WHERE}{key}: {problem.message}")
        return {}
    return _given(checked.model_dump(mode="json", exclude_none=True))
