"""The documents of a sweep's points as pipelines, in which steps that say the same are one object.

A thousand points have a few dozen different steps, so each is validated once, and planning knows
by its identity what it has seen. Called by `pipeline`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from nexa_hpc.core.canonical import canonical_json
from nexa_hpc.core.collector import without_gc
from nexa_hpc.core.document import Document
from nexa_hpc.core.points import Point
from nexa_hpc.core.spec import PipelineSpec, Step, parse_pipeline
from nexa_hpc.errors import UserError


def parse_points(
    documents: Sequence[Document], points: Sequence[Point]
) -> tuple[PipelineSpec, ...]:
    """Return the pipeline at each of `points`.

    Raises SpecError with all problems of the first document that has some, UserError when a point
    changes what the pipeline is called.
    """
    first = parse_pipeline(documents[0])
    beside = _beside_steps(documents[0])
    steps = _Steps()
    specs = []
    with without_gc():
        for document, point in zip(documents, points, strict=True):
            found = steps.of(document.value)
            if found is None or _beside_steps(document) != beside:
                spec = parse_pipeline(document)
                found = steps.of(document.value) or spec.steps
            else:
                spec = first
            if spec.name != first.name:
                raise UserError(
                    f"the point {point.label} renames the pipeline; a sweep is of one pipeline"
                )
            specs.append(spec.model_copy(update={"steps": found}))
    return tuple(specs)


def _beside_steps(document: Document) -> Mapping[str, Any] | None:
    pipeline = document.value.get("pipeline")
    if not isinstance(pipeline, dict) or set(document.value) != {"pipeline"}:
        return None
    return {key: value for key, value in pipeline.items() if key != "steps"}


class _Steps:
    """Steps that were validated already, by the mapping itself and by what it says."""

    def __init__(self) -> None:
        self._known: dict[int, Step] = {}
        self._saying: dict[str, Step] = {}

    def of(self, document: Mapping[str, Any]) -> tuple[Step, ...] | None:
        """Return the steps of `document`, or None where something is wrong with one."""
        pipeline = document.get("pipeline")
        raw = pipeline.get("steps") if isinstance(pipeline, dict) else None
        if not isinstance(raw, list) or not raw:
            return None
        try:
            return tuple(self._step(step) for step in raw)
        except (ValidationError, ValueError, TypeError):
            return None

    def _step(self, raw: Any) -> Step:
        # The caller holds the documents, so that no other mapping can have the id meanwhile.
        known = self._known.get(id(raw))
        if known is None:
            saying = canonical_json(raw)
            known = self._saying.get(saying)
            if known is None:
                known = Step.model_validate(raw, by_alias=True, by_name=False)
                self._saying[saying] = known
            self._known[id(raw)] = known
        return known
