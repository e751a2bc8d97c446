"""The Python interface, and what the command line calls: plan, run, rerun and resume a pipeline.

    from nexa_hpc import Pipeline
    run = Pipeline.from_yaml("pipelines/general_e2e.yaml").run()
    run.result("train")            # the folder of its artifact

Here a pipeline's document, its project and its earlier runs come together.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from nexa_hpc.compose.document import compose_pipeline
from nexa_hpc.compose.settings import project_settings
from nexa_hpc.compose.site import site_config
from nexa_hpc.core import spec as documents
from nexa_hpc.core.checks import PlanRequest
from nexa_hpc.core.collector import without_gc
from nexa_hpc.core.document import Document
from nexa_hpc.core.handlers import find_handler
from nexa_hpc.core.nodes import nodes_of
from nexa_hpc.core.paths import ProjectPaths, find_root
from nexa_hpc.core.planning import Plan, make_plan
from nexa_hpc.core.points import Point
from nexa_hpc.core.reruns import raised
from nexa_hpc.core.runs import Run, create_run, newest_run, raise_rerun_count, rerun_counts
from nexa_hpc.core.salvage import salvage, with_further
from nexa_hpc.core.sharing import group_id, prepare
from nexa_hpc.definition import Definition, recorded_definition, refuse_taken_name
from nexa_hpc.errors import SpecError, UserError
from nexa_hpc.observing import Observer
from nexa_hpc.pipeline_run import PipelineRun, drive
from nexa_hpc.schedulers import refuse_unknown
from nexa_hpc.schedulers.login import obey_login_policy
from nexa_hpc.schedulers.requeued import stay_cancelled
from nexa_hpc.schedulers.slurm.terms import Terms
from nexa_hpc.slurm_terms import (
    problems,
    read_terms,
    refuse_folder,
    refuse_stranded,
    refuse_untracked,
)


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
        self._set(Definition(spec, document, root))

    @classmethod
    def from_yaml(
        cls,
        path: str | os.PathLike[str],
        *,
        overrides: Sequence[str] = (),
        multirun: bool = False,
        project: str | os.PathLike[str] | None = None,
        config_dirs: Sequence[str | os.PathLike[str]] = (),
    ) -> Pipeline:
        """Read the pipeline in the file `path`, under `overrides` as the command line takes them.

        With `multirun`, overrides may sweep (`a=1,2`), and the file's own `sweep:` does.
        `config_dirs` add to the layers of configuration. Raises SpecError with every problem found,
        UserError for an override of what is not there.
        """
        file = Path(path)
        if not file.is_file():
            raise UserError(f"no such pipeline file: {file}", hint="nexa-hpc pipeline list")
        root = find_root(Path.cwd(), file, Path(project) if project is not None else None)
        folders = [Path(folder) for folder in config_dirs]
        composed = compose_pipeline(file, root, overrides, multirun=multirun, config_dirs=folders)
        try:
            return cls._of(Definition.composed_of(composed, file.resolve(), root))
        except SpecError as error:
            partial = salvage(composed.document)
            if partial is None:
                raise
            pipeline = cls._of(
                Definition(partial[0], composed.document, root, file.resolve(), composed)
            )
            raise pipeline._with_further_problems(error, partial[1]) from None

    def _with_further_problems(self, error: SpecError, left_out: set[tuple[str, str]]) -> SpecError:
        """Return `error` together with what else is wrong, apart from echoes of it."""
        found = nodes_of(self.plan_request(None, {}))
        return with_further(error, found.problems + found.unsupported, left_out)

    @classmethod
    def from_run(cls, run: Run) -> Pipeline:
        """Read the pipeline of `run` from its file as it is now, under the overrides of then;
        without a file, as it was recorded.

        Raises SpecError with every problem found.
        """
        asked, root = run.request, run.paths.root
        file = asked.get("file")
        if file is not None and (root / file).is_file():
            pipeline = cls.from_yaml(
                root / file,
                overrides=asked.get("overrides", ()),
                multirun=bool(asked.get("multirun")),
                project=root,
                config_dirs=asked.get("config_dirs", ()),
            )
        else:
            pipeline = cls._of(recorded_definition(run))
        if run.points and not pipeline.points:
            return pipeline.sweep([point.overrides for point in run.points])
        return pipeline

    @classmethod
    def _of(cls, definition: Definition) -> Pipeline:
        pipeline = cls.__new__(cls)
        pipeline._set(definition)
        return pipeline

    def _set(self, definition: Definition) -> None:
        self.definition = definition
        composed = definition.composed
        self.config = composed.config if composed is not None else site_config(definition.root)
        self.settings = project_settings(definition.root, self.config)
        self.paths: ProjectPaths = self.settings.project_paths(definition.root)

    def sweep(self, points: Iterable[str | Mapping[str, Any]]) -> Pipeline:
        """Return this pipeline as a sweep: over texts in the command line's grammar, of which all
        combinations are taken, or over points that are given one by one.

            pipeline.sweep(["steps.train.params.seed=1,2", "steps.train.params.lr=1e-5,3e-5"])
            pipeline.sweep([{"steps.train.params.lr": 1e-5}, {"steps.train.params.lr": 3e-5}])

        Points that agree on a step's key share its result; one that comes twice counts once.
        Raises UserError for no points, or an override of what is not there.
        """
        given = list(points)
        texts = [text for text in given if isinstance(text, str)]
        if not texts:
            overrides = [point for point in given if not isinstance(point, str)]
            return self._of(self.definition.swept(overrides))
        composed, file = self.definition.composed, self.file
        if len(texts) < len(given) or composed is None or file is None:
            raise UserError(
                "a sweep is over texts, for a pipeline that was read from its file, or over points "
                "as mappings of override paths to values"
            )
        return self.from_yaml(
            file,
            overrides=[*composed.overrides, *texts],
            multirun=True,
            project=self.definition.root,
            config_dirs=composed.config_dirs,
        )

    @property
    def spec(self) -> documents.PipelineSpec:
        """The document as models; of a sweep, that of its first point."""
        return self.definition.spec

    @property
    def document(self) -> Document:
        """The document as it was read and composed; of a sweep, that of its first point."""
        return self.definition.document

    @property
    def file(self) -> Path | None:
        """Where it was read from; None for a pipeline made in Python."""
        return self.definition.file

    @property
    def points(self) -> tuple[Point, ...]:
        """Of a sweep, in their order; empty for a plain pipeline."""
        return self.definition.points

    @property
    def name(self) -> str:
        """The pipeline's name."""
        return self.spec.name

    def plan(
        self,
        *,
        scheduler: str | None = None,
        rerun_from: str | None = None,
        policy: Mapping[str, Any] | None = None,
    ) -> Plan:
        """Return what `run` would do; writes nothing.

        Raises SpecError with every problem found, UnsupportedError for what this version does not
        do.
        """
        return self.plan_under(self.terms(scheduler, policy), scheduler, rerun_from)

    def plan_under(
        self, terms: Terms | None, scheduler: str | None = None, rerun_from: str | None = None
    ) -> Plan:
        """The same under `terms` that the caller has from `terms`."""
        with without_gc():
            return self._plan(scheduler, rerun_from, terms, glance=False)

    def run(
        self,
        *,
        scheduler: str | None = None,
        rerun_from: str | None = None,
        policy: Mapping[str, Any] | None = None,
        adopt: bool = False,
        jobs: int = 1,
        observer: Observer | None = None,
        wait: bool = True,
    ) -> PipelineRun:
        """Plan, record a new run and drive it to its end; a failed step is told by the result.

        `jobs` independent steps run side by side, in worker processes; with 1, all in this one.
        `rerun_from` computes that step and all below it again, even if cached; in a sweep it may
        be `step@point`. `policy` overrides fields of the scheduler's policy; without `wait`, what
        Slurm has is left to it. `adopt` takes over a pipeline name that another file used last.
        Raises Interrupted when stopped from outside.
        """
        run, _ = self.start(scheduler=scheduler, rerun_from=rerun_from, policy=policy, adopt=adopt)
        return drive(run, observer, jobs, wait=wait)

    def submit(
        self,
        *,
        scheduler: str | None = None,
        policy: Mapping[str, Any] | None = None,
        adopt: bool = False,
    ) -> PipelineRun:
        """Plan and record a new run, hand over what Slurm is to run, and return at once.

        Steps that run here wait for `PipelineRun.wait`, but for those that Slurm ones wait for.
        """
        run, plan = self.start(scheduler=scheduler, policy=policy, adopt=adopt)
        if any(instance.scheduler == "slurm" for instance in plan.to_run()):
            return drive(run, wait=False)
        return PipelineRun(run)

    def start(
        self,
        *,
        scheduler: str | None = None,
        rerun_from: str | None = None,
        policy: Mapping[str, Any] | None = None,
        adopt: bool = False,
    ) -> tuple[Run, Plan]:
        """Plan and record a new run without driving it."""
        terms = self.terms(scheduler, policy)
        prepare(self.paths, self.settings.group)
        if not adopt:
            refuse_taken_name(self.definition, self.paths)
        stay_cancelled(newest_run(self.paths, self.name))
        with without_gc():
            return self._start(scheduler, rerun_from, terms)

    def _start(
        self, scheduler: str | None, rerun_from: str | None, terms: Terms | None
    ) -> tuple[Run, Plan]:
        # Results are looked at when the plan, which names them, has been recorded: what is removed
        # from the store at this moment is then missed in time, and computed.
        plan = self._plan(scheduler, rerun_from, terms, glance=True)
        obey_login_policy(self.paths.root, plan.to_run(), self.config)
        home = self.paths.pipeline(self.name)
        counts = rerun_counts(home)
        for name, count in plan.reruns.items():
            if count > counts.get(name, 0):
                raise_rerun_count(home, name, count)
        request = {
            **self.definition.recorded(self.paths),
            "scheduler": scheduler,
            "rerun_from": rerun_from,
            "slurm": terms.to_json() if terms is not None else None,
        }
        return create_run(self.paths, self.name, request, plan.instances.values()), plan

    def terms(self, scheduler: str | None, policy: Mapping[str, Any] | None = None) -> Terms | None:
        """Return the terms under which Slurm steps would be submitted; None without any."""
        chosen = self.config.default_scheduler
        steps = self.definition.all_steps
        named = [scheduler] if scheduler else [step.scheduler or chosen for step in steps]
        if "slurm" not in named:
            return None
        refuse_unknown("slurm")
        refuse_folder(self.paths.state)
        return read_terms(self.paths.root, policy or {}, self.config)

    def _plan(
        self,
        scheduler: str | None,
        rerun_from: str | None,
        terms: Terms | None,
        *,
        glance: bool,
    ) -> Plan:
        group_id(self.settings.group)
        counts = rerun_counts(self.paths.pipeline(self.name))
        request = self.plan_request(scheduler, counts, terms, glance=glance)
        plan = make_plan(request)
        if rerun_from is not None:
            plan = make_plan(replace(request, reruns=raised(plan, counts, rerun_from)))
        refuse_stranded(plan)
        refuse_untracked(plan, self.paths.root)
        return plan

    def plan_request(
        self,
        scheduler: str | None,
        reruns: Mapping[str, int],
        terms: Terms | None = None,
        *,
        glance: bool = False,
    ) -> PlanRequest:
        """Return what a plan is made from."""
        return PlanRequest(
            spec=self.spec,
            document=self.document,
            paths=self.paths,
            settings=self.settings,
            find_handler=find_handler,
            find_scheduler=refuse_unknown,
            scheduler=scheduler,
            default_scheduler=self.config.default_scheduler or "local",
            check_request=partial(problems, terms) if terms is not None else None,
            reruns=reruns,
            glance=glance,
            points=self.points,
            specs=self.definition.specs,
            documents=self.definition.documents,
        )
