"""From nodes to instances: inputs digested, code looked at, keys computed, parents first.

Nodes that turn out to have one key are one instance: they differ in what no key holds. Called by
`planning`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nexa_hpc.core import spec as documents
from nexa_hpc.core.checks import PlanRequest
from nexa_hpc.core.code import imported_sources
from nexa_hpc.core.digests import Digester, host_name
from nexa_hpc.core.endpoints import DRY_RUN
from nexa_hpc.core.handlers import Handler
from nexa_hpc.core.hub_cache import COMMIT, MAIN, HubName, is_hub_name, pin_of
from nexa_hpc.core.inputs import PACKAGE_PREFIX, Reference, ResolvedInput, Resolver, package_path
from nexa_hpc.core.instances import SINGLE_OUTPUT, Instance
from nexa_hpc.core.keys import key_document, step_key
from nexa_hpc.core.nodes import Node
from nexa_hpc.core.registry import Registry
from nexa_hpc.core.retries import NO_RETRY
from nexa_hpc.errors import NexaError, Problem, UserError


class Keying:
    """Computes the keys of nodes that are given in graph order."""

    def __init__(self, request: PlanRequest) -> None:
        self._request = request
        paths = request.paths
        self._digester = Digester(
            paths.remembered_digests(host_name()), limit_gb=request.settings.hash_limit_gb
        )
        self._resolver = Resolver(Registry(paths.registry), self._digester, self._fetched)
        self._roots = paths.named_roots()
        self._keys: dict[str, str] = {}
        self._first: dict[tuple[str, str], Node] = {}
        """Step id and key -> the node that has it."""
        self._same: dict[str, str] = {}
        """Node -> the one before it that has its key."""
        self._code: dict[str, dict[str, str]] = {}
        self.problems: list[Problem] = []
        self.warnings: list[str] = []

    def instances(self, nodes: Sequence[Node]) -> dict[str, Instance]:
        """Return an instance for each key, by the name of its first node, in graph order.

        With `problems`, some are missing.
        """
        found: dict[str, Instance] = {}
        shared: dict[str, Node] = {}
        for node in nodes:
            instance = self._instance(node)
            if instance is None or any(self._name(above) not in found for above in node.parents):
                continue
            first = self._first.setdefault((node.step.id, instance.key), node)
            if first is node:
                found[node.name] = instance
            else:
                self._share(found, first, node, instance)
                shared[first.name] = first
        if not self.problems:
            self._digester.save()
        return found | {name: self._whole(found[name], node) for name, node in shared.items()}

    def _fetched(self, kind: str, name: str, pinned: str | None) -> str | None:
        """Return the revision in `paths.hub`, which is the one that steps get."""
        if pinned and COMMIT.fullmatch(pinned):
            return pinned
        hub = self._request.paths.hub
        return HubName(kind, name, pinned or MAIN).commit(hub) if hub is not None else None

    def _share(
        self, found: Mapping[str, Instance], first: Node, node: Node, instance: Instance
    ) -> None:
        """Let `first` serve the points of `node` as well."""
        self._same[node.name] = first.name
        first.points += node.points
        first.parents.update((self._name(above), None) for above in node.parents)
        other = found[first.name].resources
        if instance.resources != other:
            differing = sorted(
                name
                for name in {*other, *instance.resources}
                if other.get(name) != instance.resources.get(name)
            )
            self._note(
                node,
                "resources",
                f"points that share its result ask for different {', '.join(differing)}; ask for "
                "the same, or say `key_resources: true`: each then has a result of its own",
            )

    def _whole(self, instance: Instance, node: Node) -> Instance:
        """Return `instance` with what other nodes have added to its own one, `node`."""
        return instance._replace(
            parents=self._parents(node), points=tuple(dict.fromkeys(node.points))
        )

    def _parents(self, node: Node) -> tuple[str, ...]:
        return tuple(dict.fromkeys(map(self._name, node.parents))) if node.parents else ()

    def _name(self, node: str) -> str:
        return self._same.get(node, node)

    def _instance(self, node: Node) -> Instance | None:
        step, handler = node.step, node.handler
        params = handler.resolve(node.view)
        inputs = self._inputs(node, params)
        code = self._code_digests(node)
        env = node.view.env
        if inputs is None or code is None:
            # Keys below this step cannot be told; its problem is reported instead of theirs.
            self._keys[node.name] = ""
            return None
        # What `in` names may be called like a param, and is another thing.
        left_out = {i.name for i in inputs if i.name not in step.inputs}.union(handler.keyless)
        document = key_document(
            uses=step.uses,
            handler_version=handler.version,
            backend=step.backend,
            scheduler=step.scheduler,
            params={n: v for n, v in params.items() if n not in left_out} if left_out else params,
            inputs={i.name: i.source for i in inputs},
            outputs={name: os.path.normpath(path) for name, path in step.outputs.items()},
            cache_hint=step.cache_hint,
            env={n: env[n] for n in ("container", "variables") if env.get(n)},
            code=code,
            rerun=node.rerun,
            resources=node.view.resources if step.key_resources else None,
            roots=self._roots,
        )
        self._keys[node.name] = key = step_key(document)
        return Instance(
            step=node.name,
            declared_step="" if node.name == step.id else step.id,
            key=key,
            uses=step.uses,
            kind=handler.kind,
            backend=step.backend,
            scheduler=self._request.scheduler_of(step),
            effect=handler.effect,
            params=params,
            inputs={i.name: i.handed for i in inputs},
            sources={i.name: i.source for i in inputs},
            outputs=_outputs(step, handler),
            parents=self._parents(node),
            env=env,
            resources=node.view.resources,
            labels={**node.request.spec.labels, **step.labels},
            document=document,
            resolved=_resolved(step, params, inputs),
            retry=step.retry.model_dump(exclude_none=True) if step.retry is not NO_RETRY else {},
            light=step.light or handler.light,
            resumable=handler.resumable(params),
            snapshot=step.snapshot,
            serves=handler.serves and not params.get(DRY_RUN),
            points=tuple(node.points),
            action="",
            reason="",
        )

    def _inputs(self, node: Node, params: Mapping[str, Any]) -> list[ResolvedInput] | None:
        found: list[ResolvedInput] = []
        whole = True
        for reference in node.references:
            try:
                found.append(self._resolved(node, self._merged(reference)))
            except (NexaError, OSError) as error:
                whole = False
                self._note(node, reference.place, _with_hint(error))
        return [*found, *self._of_config(node, params)] if whole else None

    def _resolved(self, node: Node, reference: Reference) -> ResolvedInput:
        """Return what an input stands for; a hub's name that nobody tells the revision of is warned
        of.
        """
        asked, pinned_by = self._pinned(reference, node)
        resolved = self._resolver.resolve(asked, self._keys, node.handler)
        if resolved.handed.get("revision", "known") is None:
            self.warnings.append(
                f"step '{node.step.id}': no hub tells the revision of {reference.text}, so a "
                f"change of it would go unnoticed; name it in `{pinned_by}`"
            )
        return resolved

    def _of_config(self, node: Node, params: Mapping[str, Any]) -> Iterator[ResolvedInput]:
        """Yield the models and datasets, lying here or on a hub, that only the step's config file
        names.
        """
        named = {*node.step.params, *node.step.inputs}
        for name, kind in node.handler.input_params.items():
            text = params.get(name)
            if kind not in ("model", "dataset") or name in named or not isinstance(text, str):
                continue
            try:
                self._check_not_made(node, text)
                path = _lying_here(text, self._request.paths.root)
                place = f"params.{name}"
                if path is not None:
                    yield self._resolved(node, Reference(name, place, text, "path", path=path))
                elif is_hub_name(text, self._request.paths.root):
                    yield self._resolved(node, Reference(name, place, text, "hub"))
            except (NexaError, OSError) as error:
                self.warnings.append(
                    f"step '{node.step.id}': {text} is named in the config, and its content is not "
                    f"in the key: {error}; name it by `in: {{{name}: …}}`"
                )

    def _check_not_made(self, node: Node, text: str) -> None:
        """Raise UserError for what a step of the pipeline makes: what lies there may be an old one.

        A config file implies no edges, so this step's key cannot hold that one's.
        """
        path = Path(os.path.abspath(self._request.paths.root / text))
        for step in node.request.spec.steps:
            for out in step.outputs.values():
                if path.is_relative_to(os.path.abspath(self._request.paths.root / out)):
                    raise UserError(f"step '{step.id}' makes it")

    def _pinned(self, reference: Reference, node: Node) -> tuple[Reference, str]:
        """Return `reference` with the revision that it is pinned to, and the param that pins it."""
        if reference.kind != "hub":
            return reference, ""
        param, revision = pin_of(node.handler, node.view, reference.name)
        return replace(reference, revision=revision), param

    def _merged(self, reference: Reference) -> Reference:
        """Return `reference` with the nodes that others of their key stand for."""
        return reference.renamed(self._same) if self._same else reference

    def _code_digests(self, node: Node) -> dict[str, str] | None:
        """Return source file -> digest: what the handler imports of the project, and its `code`."""
        project, step = self._request.paths.root, node.step
        try:
            if ":" in step.uses:
                return self._module_digests(step.uses.partition(":")[0])
            params = node.handler.code_params
            listed = [name for param in params for name in step.params.get(param, ())]
            return {name: self._digester.digest(project / name).sha256 for name in listed}
        except (NexaError, OSError) as error:
            self._note(node, "uses" if ":" in step.uses else "params.code", _with_hint(error))
            return None

    def _module_digests(self, module: str) -> dict[str, str]:
        if module not in self._code:
            project = self._request.paths.root
            files = imported_sources(module, project)
            if not files:
                self.warnings.append(
                    f"the source of {module} lies outside the project and is not in the key; "
                    "change `cache_hint` when it changes"
                )
            self._code[module] = {
                file.relative_to(project).as_posix(): self._digester.digest(file).sha256
                for file in files
            }
        return self._code[module]

    def _note(self, node: Node, key: str, message: str) -> None:
        problem = node.request.problem(node.step, key, message)
        if problem not in self.problems:
            self.problems.append(problem)


def _lying_here(text: str, root: Path) -> Path | None:
    """Return the absolute path that `text` names, of a package or below `root`; None without."""
    try:
        if text.startswith(PACKAGE_PREFIX):
            return package_path(text)
    except UserError:
        return None
    path = Path(os.path.abspath(root / text))
    return path if text and path.exists() else None


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
