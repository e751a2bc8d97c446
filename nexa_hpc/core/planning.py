"""Planning: from a pipeline document to instances with keys and decisions, before anything is
written.

`make_plan` checks everything that can be checked and reports all problems at once; it computes
every key in graph order and decides for each step whether it runs, and why. Called by
`advance.start_run` (which records the plan) and by `plan`, `why` and `viz` (which only show it).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nexa_hpc.core import spec as documents
from nexa_hpc.core.checks import Drafts, PlanRequest, check_steps
from nexa_hpc.core.code import imported_sources
from nexa_hpc.core.decisions import Decider
from nexa_hpc.core.digests import Digester, host_name
from nexa_hpc.core.graph import Graph, build_graph, check_graph
from nexa_hpc.core.handlers import Handler
from nexa_hpc.core.inputs import ResolvedInput, Resolver
from nexa_hpc.core.instances import SINGLE_OUTPUT, Instance
from nexa_hpc.core.keys import key_document, step_key
from nexa_hpc.core.outs import check_outs
from nexa_hpc.core.registry import Registry
from nexa_hpc.core.spec_sections import EnvSpec
from nexa_hpc.errors import NexaError, Problem, SpecError, UnsupportedError

_NO_ENV = EnvSpec()


@dataclass(frozen=True)
class Plan:
    """What a run would do: instances in graph order, and what the user should know."""

    pipeline: str
    instances: Mapping[str, Instance]
    graph: Graph
    warnings: tuple[str, ...] = ()

    def to_run(self) -> list[Instance]:
        """Return the instances that are not skipped."""
        return [instance for instance in self.instances.values() if instance.action == "RUN"]


def make_plan(request: PlanRequest) -> Plan:
    """Check everything, compute the keys and decide; writes nothing but the digest memory.

    Raises SpecError with every problem found, UnsupportedError when what is left is only what this
    version does not do.
    """
    drafts, implied = check(request)
    _raise_problems(drafts.problems, drafts.unsupported)
    graph = build_graph(request.spec.steps, implied)
    instances = _Keys(request, drafts, graph).instances()
    return Plan(request.spec.name, instances, graph, tuple(drafts.warnings))


def check(request: PlanRequest) -> tuple[Drafts, dict[str, list[str]]]:
    """Return what checking finds out, all problems included, and the edges that inputs imply."""
    drafts = check_steps(request)
    drafts.problems += check_outs(
        request.spec, request.document, request.paths, request.settings.allow_absolute_out
    )
    implied = {
        step: [r.step for r in references if r.step is not None]
        for step, references in drafts.references.items()
    }
    drafts.problems += check_graph(request.spec.steps, implied, request.document)
    return drafts, implied


def _raise_problems(problems: Sequence[Problem], unsupported: Sequence[Problem]) -> None:
    if problems:
        raise SpecError([*problems, *unsupported])
    if unsupported:
        raise UnsupportedError("\n".join(str(problem) for problem in unsupported))


class _Keys:
    """Computes keys and decisions in graph order."""

    def __init__(self, request: PlanRequest, drafts: Drafts, graph: Graph) -> None:
        self._request = request
        self._drafts = drafts
        self._graph = graph
        paths = request.paths
        self._steps = {step.id: step for step in request.spec.steps}
        self._digester = Digester(
            paths.remembered_digests(host_name()), limit_gb=request.settings.hash_limit_gb
        )
        self._resolver = Resolver(Registry(paths.registry), self._digester)
        self._roots = paths.named_roots()
        self._keys: dict[str, str] = {}
        self._problems: list[Problem] = []
        self._code: dict[str, dict[str, str]] = {}

    def instances(self) -> dict[str, Instance]:
        """Return them in graph order; raises SpecError when an input cannot be digested."""
        found: dict[str, Instance] = {}
        decider = Decider(
            self._request.spec.name,
            self._request.paths,
            self._drafts.handlers,
            glance=self._request.glance,
        )
        for step_id in self._graph.order:
            draft = self._instance(self._steps[step_id])
            if draft is not None and all(parent in found for parent in draft.parents):
                found[step_id] = draft.decided(*decider.decide(draft, found))
        _raise_problems(self._problems, ())
        self._digester.save()
        return found

    def _instance(self, step: documents.Step) -> Instance | None:
        handler = self._drafts.handlers[step.id]
        inputs = self._inputs(step, handler)
        code = self._code_digests(step, handler)
        params = dict(handler.resolve(self._drafts.views[step.id]))
        as_inputs = {reference.place for reference in self._drafts.references[step.id]}
        env = step.env.model_dump(exclude_defaults=True) if step.env != _NO_ENV else {}
        if inputs is None or code is None:
            # Keys below this step cannot be told; its problem is reported instead of theirs.
            self._keys[step.id] = ""
            return None
        document = key_document(
            uses=step.uses,
            handler_version=handler.version,
            backend=step.backend,
            scheduler=step.scheduler,
            params={n: v for n, v in params.items() if f"params.{n}" not in as_inputs},
            inputs={i.name: i.source for i in inputs},
            outputs={name: os.path.normpath(path) for name, path in step.outputs.items()},
            cache_hint=step.cache_hint,
            env={n: env[n] for n in ("container", "variables") if env.get(n)},
            code=code,
            rerun=self._request.reruns.get(step.id, 0),
            roots=self._roots,
        )
        self._keys[step.id] = key = step_key(document)
        return Instance(
            step=step.id,
            key=key,
            uses=step.uses,
            kind=handler.kind,
            backend=step.backend,
            scheduler=self._request.scheduler or step.scheduler or "local",
            effect=handler.effect,
            params=params,
            inputs={i.name: i.handed for i in inputs},
            sources={i.name: i.source for i in inputs},
            outputs=_outputs(step, handler),
            parents=tuple(self._graph.parents[step.id]),
            env=env,
            resources=self._drafts.views[step.id].resources,
            labels={**self._request.spec.labels, **step.labels},
            document=document,
            resolved=_resolved(step, params, inputs),
            action="",
            reason="",
        )

    def _inputs(self, step: documents.Step, handler: Handler) -> list[ResolvedInput] | None:
        found: list[ResolvedInput] = []
        whole = True
        for reference in self._drafts.references[step.id]:
            try:
                resolved = self._resolver.resolve(reference, self._keys, handler)
            except (NexaError, OSError) as error:
                whole = False
                self._note(step, reference.place, error)
                continue
            found.append(resolved)
            named = step.params.get(f"{reference.name}_revision")
            if resolved.handed.get("revision", "known") is None and named is None:
                self._drafts.warnings.append(
                    f"step '{step.id}': no hub tells the revision of {reference.text}, so a change "
                    f"of it would go unnoticed; name it in `{reference.name}_revision`"
                )
        return found if whole else None

    def _code_digests(self, step: documents.Step, handler: Handler) -> dict[str, str] | None:
        """Return source file -> digest: what the handler imports of the project, and its `code`."""
        project = self._request.paths.root
        try:
            if ":" in step.uses:
                return self._module_digests(step.uses.partition(":")[0])
            listed = [name for param in handler.code_params for name in step.params.get(param, ())]
            return {name: self._digester.digest(project / name).sha256 for name in listed}
        except (NexaError, OSError) as error:
            self._note(step, "uses" if ":" in step.uses else "params.code", error)
            return None

    def _module_digests(self, module: str) -> dict[str, str]:
        if module not in self._code:
            project = self._request.paths.root
            files = imported_sources(module, project)
            if not files:
                self._drafts.warnings.append(
                    f"the source of {module} lies outside the project and is not in the key; "
                    "change `cache_hint` when it changes"
                )
            self._code[module] = {
                file.relative_to(project).as_posix(): self._digester.digest(file).sha256
                for file in files
            }
        return self._code[module]

    def _note(self, step: documents.Step, key: str, error: Exception) -> None:
        self._problems.append(self._request.problem(step, key, _with_hint(error)))


def _with_hint(error: Exception) -> str:
    hint = getattr(error, "hint", None)
    return f"{error} ({hint})" if hint else str(error)


def _outputs(step: documents.Step, handler: Handler) -> dict[str, Any]:
    if handler.effect:
        return {}
    return dict(step.outputs) or {SINGLE_OUTPUT: None}


def _resolved(
    step: documents.Step, params: Mapping[str, Any], inputs: Sequence[ResolvedInput]
) -> dict[str, str]:
    """Return what was filled in beyond what the document says, for people to read."""
    found = {n: str(v) for n, v in params.items() if step.params.get(n) != v}
    for resolved in inputs:
        if resolved.handed.get("revision"):
            found[resolved.name] = f"revision {resolved.handed['revision']}"
        if "version" in resolved.handed:
            found[resolved.name] = str(resolved.handed["version"])
    return found
