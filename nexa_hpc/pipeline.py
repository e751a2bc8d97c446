"""The Python interface, and what the command line calls: plan, run, rerun and resume a pipeline.

    from nexa_hpc import Pipeline
    run = Pipeline.from_yaml("pipelines/general_e2e.yaml").run()
    run.result("train")            # the folder of its artifact

Planning and driving are elsewhere (`core.planning`, `driving`); here a pipeline's document, its
project and its earlier runs come together.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nexa_hpc import advance, driving
from nexa_hpc.core import spec as documents
from nexa_hpc.core.artifacts import open_artifact, sha256_file
from nexa_hpc.core.checks import PlanRequest
from nexa_hpc.core.document import Document, read_document, without_gc
from nexa_hpc.core.handlers import find_handler
from nexa_hpc.core.instances import Instance
from nexa_hpc.core.paths import ProjectPaths, find_root
from nexa_hpc.core.planning import Plan, check, make_plan
from nexa_hpc.core.reading import read_json_or_none
from nexa_hpc.core.runs import (
    Run,
    begin_round,
    create_run,
    newest_run,
    raise_rerun_count,
    rerun_counts,
)
from nexa_hpc.core.salvage import is_echo, salvage
from nexa_hpc.core.settings import read_settings
from nexa_hpc.core.sharing import group_id, prepare
from nexa_hpc.core.standings import fold_all
from nexa_hpc.core.states import Standing
from nexa_hpc.errors import SpecError, UnknownNameError, UserError, nearest
from nexa_hpc.schedulers import refuse_unknown

METRICS = "metrics.json"


class Pipeline:
    """A pipeline document in its project."""

    def __init__(
        self,
        name: str,
        steps: Sequence[documents.Step],
        *,
        labels: Mapping[str, str] | None = None,
        project: str | os.PathLike[str] | None = None,
    ) -> None:
        """Make a pipeline of `steps`; `project` is its root (default: as the command line finds
        it).

        Raises SpecError when a field is wrong; what needs the whole is checked by `plan`.
        """
        spec = documents.PipelineSpec(name=name, steps=tuple(steps), labels=dict(labels or {}))
        document = Document({}, {}, f"pipeline '{name}'")
        root = find_root(Path.cwd(), project=Path(project) if project is not None else None)
        self._set(spec, document, None, root)

    @classmethod
    def from_yaml(
        cls, path: str | os.PathLike[str], *, project: str | os.PathLike[str] | None = None
    ) -> Pipeline:
        """Read the pipeline in the file `path`; raises SpecError with every problem found."""
        file = Path(path)
        if not file.is_file():
            raise UserError(f"no such pipeline file: {file}", hint="nexa-hpc pipeline list")
        document = read_document(file)
        root = find_root(Path.cwd(), file, Path(project) if project is not None else None)
        pipeline = cls.__new__(cls)
        try:
            spec = documents.parse_pipeline(document)
        except SpecError as error:
            partial = salvage(document)
            if partial is None:
                raise
            pipeline._set(partial[0], document, file.resolve(), root)
            raise pipeline._with_further_problems(error, partial[1]) from None
        pipeline._set(spec, document, file.resolve(), root)
        return pipeline

    def _with_further_problems(self, error: SpecError, left_out: set[tuple[str, str]]) -> SpecError:
        """Return `error` together with what else is wrong, apart from echoes of it."""
        drafts, _ = check(self._plan_request(None, {}))
        found = [p for p in drafts.problems + drafts.unsupported if not is_echo(p, left_out)]
        problems = dict.fromkeys([*error.problems, *found])
        return SpecError(sorted(problems, key=lambda problem: problem.line or 0))

    @classmethod
    def from_run(cls, run: Run) -> Pipeline:
        """Read the pipeline of `run` from its file as it is now; without one, as it was recorded.

        Raises SpecError with every problem found.
        """
        file = run.request.get("file")
        if file is not None and (run.paths.root / file).is_file():
            return cls.from_yaml(run.paths.root / file, project=run.paths.root)
        steps = [documents.Step.model_validate(step) for step in run.request["document"]]
        return cls(run.pipeline, steps, project=run.paths.root)

    def _set(
        self, spec: documents.PipelineSpec, document: Document, file: Path | None, root: Path
    ) -> None:
        self.spec = spec
        self.document = document
        self.file = file
        self.settings = read_settings(root)
        self.paths: ProjectPaths = self.settings.project_paths(root)

    @property
    def name(self) -> str:
        """The pipeline's name."""
        return self.spec.name

    def plan(self, *, scheduler: str | None = None, rerun_from: str | None = None) -> Plan:
        """Return what `run` would do; writes nothing.

        Raises SpecError with every problem found, UnsupportedError for what this version does not
        do.
        """
        return self._plan(scheduler, rerun_from, glance=False)

    def run(
        self,
        *,
        scheduler: str | None = None,
        rerun_from: str | None = None,
        adopt: bool = False,
        jobs: int = 1,
        observer: advance.Observer | None = None,
    ) -> PipelineRun:
        """Plan, record a new run and drive it to its end; a failed step is told by the result.

        `jobs` independent steps run side by side, in worker processes; with 1, all in this one.
        `rerun_from` computes that step and all below it again, even if cached. `adopt` takes over a
        pipeline name that another file used last. Raises Interrupted when stopped from outside.
        """
        run, _ = self.start(scheduler=scheduler, rerun_from=rerun_from, adopt=adopt)
        return drive(run, observer, jobs)

    def start(
        self,
        *,
        scheduler: str | None = None,
        rerun_from: str | None = None,
        adopt: bool = False,
    ) -> tuple[Run, Plan]:
        """Plan and record a new run without driving it."""
        prepare(self.paths, self.settings.group)
        self._check_name(adopt)
        with without_gc():
            return self._start(scheduler, rerun_from)

    def _start(self, scheduler: str | None, rerun_from: str | None) -> tuple[Run, Plan]:
        # Results are looked at when the plan, which names them, has been recorded: what is removed
        # from the store at this moment is then missed in time, and computed.
        plan = self._plan(scheduler, rerun_from, glance=True)
        home = self.paths.pipeline(self.name)
        counts = rerun_counts(home)
        for instance in plan.instances.values():
            count = int(instance.document["rerun"])
            if count > counts.get(instance.step, 0):
                raise_rerun_count(home, instance.step, count)
        request = {
            "file": self.paths.relative(self.file) if self.file is not None else None,
            "file_digest": self.file_digest(),
            "document": [documents.to_json(step) for step in self.spec.steps],
            "scheduler": scheduler,
            "rerun_from": rerun_from,
        }
        return create_run(self.paths, self.name, request, plan.instances.values()), plan

    def file_digest(self) -> str | None:
        """Return the SHA-256 of the file, or None for a pipeline made in Python."""
        return sha256_file(self.file) if self.file is not None else None

    def _plan(self, scheduler: str | None, rerun_from: str | None, *, glance: bool) -> Plan:
        group_id(self.settings.group)
        counts = rerun_counts(self.paths.pipeline(self.name))
        plan = make_plan(self._plan_request(scheduler, counts, glance=glance))
        if rerun_from is None:
            return plan
        raised = _raised(plan, counts, rerun_from)
        return make_plan(self._plan_request(scheduler, raised, glance=glance))

    def _plan_request(
        self, scheduler: str | None, reruns: Mapping[str, int], *, glance: bool = False
    ) -> PlanRequest:
        return PlanRequest(
            spec=self.spec,
            document=self.document,
            paths=self.paths,
            settings=self.settings,
            find_handler=find_handler,
            find_scheduler=refuse_unknown,
            scheduler=scheduler,
            reruns=reruns,
            glance=glance,
        )

    def _check_name(self, adopt: bool) -> None:
        newest = newest_run(self.paths, self.name)
        if adopt or newest is None or self.file is None:
            return
        used_by = newest.request.get("file")
        if used_by is not None and used_by != self.paths.relative(self.file):
            raise UserError(
                f"the pipeline name '{self.name}' was last used by {used_by} (run {newest.id})",
                hint="rename one of them, or add --adopt to go on under this name with this file",
            )


class PipelineRun:
    """A run and what became of it."""

    def __init__(self, run: Run, standings: Mapping[str, Standing]) -> None:
        self._run = run
        self.standings = standings
        """Step id -> where it stood when the run was driven to its end."""

    @property
    def id(self) -> str:
        """The run's id, as the command line takes it."""
        return self._run.id

    def status(self) -> dict[str, Standing]:
        """Return step id -> what is true of it now."""
        return fold_all(self._run)

    @property
    def succeeded(self) -> bool:
        """Whether every step ended COMPLETED or SKIPPED."""
        return all(standing.state.succeeded for standing in self.standings.values())

    def result(self, step: str, output: str | None = None) -> Path:
        """Return the folder of a step's artifact, in the store.

        Raises UnknownNameError for a step or output that is not there, ArtifactError when there is
        no result.
        """
        places = self._instance(step).artifact_paths(self._run.paths)
        if not places:
            raise UnknownNameError(f"step '{step}' changes something elsewhere; it has no files")
        name = output or next(iter(places))
        if name not in places:
            raise UnknownNameError(f"step '{step}' has no output '{name}'" + nearest(name, places))
        return open_artifact(places[name]).path

    def metrics(self, step: str) -> dict[str, Any]:
        """Return what the step wrote to `metrics.json`; empty when it wrote none."""
        return read_json_or_none(self.result(step) / METRICS) or {}

    def _instance(self, step: str) -> Instance:
        if step not in self._run.instances:
            raise UnknownNameError(f"no step '{step}'" + nearest(step, self._run.instances))
        return self._run.instances[step]


def drive(run: Run, observer: advance.Observer | None = None, jobs: int = 1) -> PipelineRun:
    """Drive a recorded run to its end."""
    return PipelineRun(run, driving.drive(run, observer or _Silent(), jobs))


def resume(run: Run, observer: advance.Observer | None = None, jobs: int = 1) -> PipelineRun:
    """Begin another round of a recorded run, with its recorded plan, and drive it to its end."""
    begin_round(run)
    return drive(run, observer, jobs)


class _Silent:
    """Shows nothing."""

    def started(self, instance: Instance, attempt: int) -> None:
        """See `advance.Observer`."""

    def output(self, instance: Instance, text: bytes) -> None:
        """See `advance.Observer`."""

    def progressed(self, instance: Instance, progress: object) -> None:
        """See `advance.Observer`."""

    def settled(self, instance: Instance, standing: Standing) -> None:
        """See `advance.Observer`."""

    def waits(self, instance: Instance, standing: Standing) -> None:
        """See `advance.Observer`."""


def _raised(plan: Plan, counts: Mapping[str, int], step: str) -> dict[str, int]:
    """Return the rerun counts under which `step` and all below it have new keys.

    A step that reads a new result has one by itself; one that is only ordered after it needs its
    own count raised.
    """
    if step not in plan.instances:
        raise UnknownNameError(f"no step '{step}'" + nearest(step, plan.instances))
    raised = {**counts, step: counts.get(step, 0) + 1}
    renewed = {step}
    below = plan.graph.descendants(step)
    for other in plan.graph.order:
        if other not in below:
            continue
        if not renewed.intersection(plan.graph.data_parents[other]):
            raised[other] = counts.get(other, 0) + 1
        renewed.add(other)
    return raised
