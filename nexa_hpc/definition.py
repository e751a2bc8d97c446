"""What a pipeline is made of: its document, where that is from, and the points of a sweep over it.

Made by `pipeline`, which plans and runs it, and recorded with each run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nexa_hpc.compose.document import Composed
from nexa_hpc.core import spec as specification
from nexa_hpc.core.artifacts import sha256_file
from nexa_hpc.core.document import Document, parse_document
from nexa_hpc.core.overriding import override
from nexa_hpc.core.paths import ProjectPaths
from nexa_hpc.core.point_specs import parse_points
from nexa_hpc.core.points import Point, make_points
from nexa_hpc.core.runs import Run, newest_run
from nexa_hpc.errors import UserError


@dataclass(frozen=True)
class Definition:
    """A pipeline as declared."""

    spec: specification.PipelineSpec
    document: Document
    root: Path
    """The project root."""
    file: Path | None = None
    composed: Composed | None = None
    """What the file and its overrides came to; None for what was not read from a file."""
    points: tuple[Point, ...] = ()
    specs: tuple[specification.PipelineSpec, ...] = ()
    """At each point."""
    documents: tuple[Document, ...] = ()

    @classmethod
    def composed_of(cls, composed: Composed, file: Path, root: Path) -> Definition:
        """Return what `file` was composed to; raises SpecError with every problem found."""
        if not composed.points:
            spec = specification.parse_pipeline(composed.document)
            return cls(spec, composed.document, root, file, composed)
        specs = parse_points(composed.documents, composed.points)
        at_points = composed.points, specs, composed.documents
        return cls(specs[0], composed.document, root, file, composed, *at_points)

    def swept(self, overrides: Iterable[Mapping[str, Any]]) -> Definition:
        """Return the sweep over points that are given one by one: override path -> value.

        Raises UserError for no points, or an override of what is not there.
        """
        points = make_points(overrides)
        if not points:
            raise UserError("the sweep has no points")
        documents = tuple(override(self.document, point.overrides) for point in points)
        specs = parse_points(documents, points)
        return replace(
            self, spec=specs[0], document=documents[0], points=points, specs=specs,
            documents=documents,
        )  # fmt: skip

    @property
    def has_sweep(self) -> bool:
        """Whether its file says what to sweep over."""
        return self.composed is not None and "sweep" in self.composed.source.raw.value

    @property
    def all_steps(self) -> list[specification.Step]:
        """The steps at all points; those that points share once."""
        steps = (step for spec in self.specs or (self.spec,) for step in spec.steps)
        return list({id(step): step for step in steps}.values())

    def recorded(self, paths: ProjectPaths) -> dict[str, Any]:
        """Return what a run records of it, for it to be made again: file, text, overrides,
        points.
        """
        found = {
            "file": paths.relative(self.file) if self.file is not None else None,
            "file_digest": sha256_file(self.file) if self.file is not None else None,
            **self._document(),
        }
        if self.points:
            found["points"] = [point.to_json() for point in self.points]
            if self.composed is not None and self.composed.points == self.points:
                found["multirun"] = True
        return found

    def _document(self) -> dict[str, Any]:
        if self.composed is not None and not self.composed.is_plain:
            return self.composed.to_json()
        if self.document.text:
            return {"text": self.document.text}
        return {"document": [specification.to_json(step) for step in self.spec.steps]}


def recorded_definition(run: Run) -> Definition:
    """Return what `run` recorded of its pipeline, for want of the file, but for its points."""
    root, asked = run.paths.root, run.request
    if "text" in asked:
        document = parse_document(asked["text"].encode(), f"the recorded {asked.get('file')}")
        return Definition(specification.parse_pipeline(document), document, root)
    if "document" not in asked:
        raise UserError(
            f"run {run.id} is a multirun of a Hydra app, and has no pipeline document",
            hint=f"nexa-hpc resume {run.id}, or the app's command with hydra.launcher.resume",
        )
    steps = tuple(specification.Step.model_validate(step) for step in asked["document"])
    spec = specification.PipelineSpec(name=run.pipeline, steps=steps)
    return Definition(spec, Document({}, {}, f"pipeline '{run.pipeline}'"), root)


def refuse_taken_name(definition: Definition, paths: ProjectPaths) -> None:
    """Raise UserError where the pipeline's name was last used by another file."""
    name = definition.spec.name
    newest = newest_run(paths, name)
    if newest is None or definition.file is None:
        return
    used_by = newest.request.get("file")
    if used_by is not None and used_by != paths.relative(definition.file):
        raise UserError(
            f"the pipeline name '{name}' was last used by {used_by} (run {newest.id})",
            hint="rename one of them, or add --adopt to go on under this name with this file",
        )
