"""Documents of one pipeline file: a composition for each combination of options, values laid over.

A step of a point depends on the options, on the values outside of steps, and on its own overrides:
it is made once for each such triple, and found again by its content. So 1,000 points of which 990
share a step have that step once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from nexa_hpc.compose.interpolation import BeyondUs, Resolver
from nexa_hpc.compose.layers import GROUPS, SECTIONS, Layer, chosen_group, group_options
from nexa_hpc.compose.site import SiteConfig
from nexa_hpc.core.canonical import canonical_json
from nexa_hpc.core.document import Document
from nexa_hpc.core.overriding import Change, apply, split_path
from nexa_hpc.core.quoting import shown
from nexa_hpc.errors import Problem, SpecError, UserError

Site = Callable[[Mapping[str, Any]], SiteConfig]
"""Composes the site's configuration under the sections that a pipeline gives."""

_OWN = ("defaults", "sweep")


@dataclass(frozen=True)
class Source:
    """A pipeline file as it was read, and the layers below it."""

    raw: Document
    file: Path
    layers: tuple[Layer, ...]

    @property
    def is_primary(self) -> bool:
        """Whether Hydra composes it."""
        return "defaults" in self.raw.value

    def options(self, group: str) -> dict[str, Layer] | None:
        """Return option -> layer, with those that lie beside the file; None for no group."""
        return group_options(self.all_layers if self.is_primary else self.layers, group)

    @property
    def all_layers(self) -> tuple[Layer, ...]:
        """The layers, and the folder of the file above them, as Hydra has it."""
        return (*self.layers, Layer("pipeline", self.file.resolve().parent))

    def step_ids(self) -> list[str]:
        """Return the ids of the steps that the file itself names."""
        ids = (step.get("id") for step in self.raw_steps if isinstance(step, dict))
        return [step_id for step_id in ids if isinstance(step_id, str)]

    @property
    def raw_steps(self) -> list[Any]:
        """The steps as the file has them; empty where it has none that can be read."""
        pipeline = self.raw.value.get("pipeline")
        steps = pipeline.get("steps") if isinstance(pipeline, dict) else None
        return steps if isinstance(steps, list) else []

    @cached_property
    def body(self) -> dict[str, Any]:
        """What Hydra composes: all but the sweep, and what the site's configuration is made of."""
        defaults = [
            entry for entry in self.raw.value["defaults"] if chosen_group(entry) not in GROUPS
        ]
        body = {k: v for k, v in self.raw.value.items() if k not in (*SECTIONS, "sweep")}
        return {**body, "defaults": defaults}

    def unknown_keys(self) -> list[str]:
        """Return the top-level keys that nobody uses; `parse_pipeline` reports them."""
        known = ("pipeline", *_OWN, *SECTIONS)
        return [
            key
            for key in self.raw.value
            if key not in known and not key.startswith("x-") and self.options(key) is None
        ]


@dataclass
class _Base:
    """What all points with the same options share."""

    document: Document
    """Unresolved, with all composed keys at its top."""
    config: SiteConfig
    made: dict[Any, _Variant] = field(default_factory=dict)


@dataclass
class _Variant:
    """The same under one set of values outside of steps."""

    document: Document
    frame: dict[str, Any]
    """The pipeline, resolved, but for its steps."""
    steps: dict[Any, Any] = field(default_factory=dict)


class Composer:
    """Makes the documents of one file."""

    def __init__(self, source: Source, groups: Sequence[str], site: Site) -> None:
        self.source = source
        self._groups = list(groups)
        self._site = site
        self._bases: dict[tuple[str, ...], _Base] = {}
        self._kept: list[Any] = [source.raw]
        self._known: dict[str, Any] = {}
        self.choices: dict[str, str] = {}
        """Group -> option, of the first composition."""

    def document(
        self, chosen: tuple[str, ...], fixed: Sequence[Change], swept: Sequence[Change] = ()
    ) -> tuple[Document, SiteConfig]:
        """Return the document under the options `chosen`, on top of those for all points."""
        if fixed or swept or self.source.is_primary:
            self._require_pipeline()
        base = self._bases.get(chosen)
        if base is None:
            base = self._bases[chosen] = self._base(chosen, fixed)
        if base.document is self.source.raw and not swept:
            return base.document, base.config
        if not swept and not self.source.is_primary:
            return self._finished(base.document), base.config
        outside, inside = self._parted(base.document, swept)
        variant = self._variant(base, outside)
        steps = variant.document.value["pipeline"].get("steps")
        if isinstance(steps, list):
            made = [self._step(variant, n, inside.get(n, ())) for n in range(len(steps))]
            self._keep(steps, made)
            pipeline = {**variant.frame, "steps": made}
        else:
            pipeline = variant.frame
        self._keep(variant.document.value["pipeline"], pipeline)
        return self._finished(variant.document, pipeline), base.config

    # ------------------------------------------------------------------------------- compositions

    def _base(self, chosen: tuple[str, ...], fixed: Sequence[Change]) -> _Base:
        raw = self.source.raw
        given = {name: raw.value[name] for name in SECTIONS if name in raw.value}
        if not self.source.is_primary:
            document = raw
            if "sweep" in raw.value:
                value = {key: part for key, part in raw.value.items() if key != "sweep"}
                self._keep(raw.value, value)
                document = replace(raw, value=value, lines=self._lines)
            return _Base(self._applied(document, fixed), self._site({}))
        from nexa_hpc.compose.hydra_composing import compose

        if not isinstance(raw.value["defaults"], list):
            message = "expected a list of groups and options, as `- train: small`"
            raise self._problem(("defaults",), message)
        folders = [layer.folder for layer in reversed(self.source.all_layers)]
        made = compose(self.source.body, folders, [*self._groups, *chosen], raw.name)
        config = self._site(given)
        taken = {g: o for g, o in made.choices.items() if not g.startswith("hydra/")}
        self.choices = self.choices or {g: o for g, o in taken.items() if isinstance(o, str)}
        value = {**made.value, **config.sections()}
        self._attach(raw.value, value)
        document = replace(raw, value=value, lines=self._lines)
        below = [c for c in fixed if c.path.partition(".")[0] in ("pipeline", "steps")]
        others = [c for c in fixed if c not in below]
        # What a path leads through may be `${train}`: the values of `train` come first.
        return _Base(self._applied(document, [*others, *below]), config)

    def _require_pipeline(self) -> None:
        if not isinstance(self.source.raw.value.get("pipeline"), dict):
            raise self._problem(("pipeline",), "missing: a document holds one `pipeline:`")

    def _problem(self, place: tuple[str, ...], message: str) -> SpecError:
        raw = self.source.raw
        return SpecError([Problem(message, raw.name, raw.line_of(place), key=".".join(place))])

    def _finished(self, document: Document, pipeline: Any = None) -> Document:
        """Return what `parse_pipeline` takes: the pipeline, and keys that it is to complain of."""
        if not self.source.is_primary:
            value = document.value if pipeline is None else {**document.value, "pipeline": pipeline}
        else:
            unknown = {k: self.source.raw.value[k] for k in self.source.unknown_keys()}
            value = {"pipeline": pipeline, **unknown}
        self._keep(self.source.raw.value, value)
        return replace(self.source.raw, value=value, lines=self._lines)

    # --------------------------------------------------------------------------- points and steps

    def _parted(
        self, document: Document, changes: Iterable[Change]
    ) -> tuple[list[Change], dict[int, tuple[Change, ...]]]:
        """Return the changes outside of steps, and those of each step by its place."""
        outside: list[Change] = []
        inside: dict[int, tuple[Change, ...]] = {}
        ids = _ids(document)
        for change in changes:
            place = _step_of(change.path, ids)
            if place is None:
                outside.append(change)
            else:
                inside[place] = (*inside.get(place, ()), change)
        return outside, inside

    def _variant(self, base: _Base, outside: Sequence[Change]) -> _Variant:
        name = tuple((change.kind, change.path, _name(change.value)) for change in outside)
        variant = base.made.get(name)
        if variant is None:
            document = self._applied(base.document, outside) if outside else base.document
            pipeline = document.value["pipeline"]
            frame = {key: part for key, part in pipeline.items() if key != "steps"}
            if self.source.is_primary:
                frame = {k: self._resolved(document, frame[k], (k,)) for k in frame}
            variant = base.made[name] = _Variant(document, frame)
        return variant

    def _step(self, variant: _Variant, place: int, changes: tuple[Change, ...]) -> Any:
        name = (place, *((change.kind, change.path, _name(change.value)) for change in changes))
        step = variant.steps.get(name)
        if step is None:
            document = self._applied(variant.document, changes) if changes else variant.document
            step = document.value["pipeline"]["steps"][place]
            if self.source.is_primary:
                step = self._resolved(document, step, ("steps", place))
            step = variant.steps[name] = self._known.setdefault(_name(step), step)
        return step

    def _applied(self, document: Document, changes: Sequence[Change]) -> Document:
        """Return `document` with `changes`, whose lines are then known here."""
        if not changes:
            return document
        expand = self._expanded if self.source.is_primary else None
        changed = apply(document, changes, expand)
        self._kept.append(changed)
        added: dict[int, Any] = getattr(changed.lines, "added", {})
        self._lines.update(added)
        return replace(changed, lines=self._lines)

    def _expanded(self, top: Any, text: str) -> Any:
        """Return the mapping behind `text`, to be written into in its place."""
        try:
            return Resolver(top).look_up(text)
        except BeyondUs as error:
            raise UserError(
                f"{self.source.raw.name}: '{shown(text)}' cannot be overridden below itself",
                hint="override what it refers to",
            ) from error

    def _resolved(self, document: Document, part: Any, place: tuple[str | int, ...]) -> Any:
        """Return `part`, which stands in the pipeline at `place`, resolved."""
        resolver = Resolver(document.value, self._keep)
        is_step = place[0] == "steps"
        try:
            return resolver.step(part) if is_step else resolver.value(part, str(place[0]))
        except BeyondUs:
            found = self._by_omegaconf(document, place, resolver)
            self._attach(part, found)
            return found
        except UserError as error:
            raise UserError(f"{self.source.raw.name}: {error}", hint=error.hint) from error

    def _by_omegaconf(
        self, document: Document, place: tuple[str | int, ...], resolver: Resolver
    ) -> Any:
        from nexa_hpc.compose.hydra_composing import resolve_at, with_shell, without_shell

        pipeline = document.value["pipeline"]
        expanded = [resolver.expanded(step) for step in pipeline.get("steps") or ()]
        steps, words = without_shell(expanded)
        top = {**document.value, "pipeline": {**pipeline, "steps": steps}}
        found = resolve_at(top, ("pipeline", *place), self.source.raw.name)
        return with_shell([found], words)[0] if place[0] == "steps" else found

    # --------------------------------------------------------------------------------------- lines

    @cached_property
    def _lines(self) -> dict[int, Any]:
        """Of the file, and of all that is made of it."""
        return dict(self.source.raw.lines)

    def _keep(self, old: Any, new: Any) -> None:
        """Have `new`, made of `old`, know the lines of `old`; it lives as long as they do."""
        self._kept.append(new)
        lines = self._lines.get(id(old))
        if lines is not None:
            self._lines[id(new)] = lines

    def _attach(self, old: Any, new: Any) -> None:
        """The same for all that is inside of both."""
        self._keep(old, new)
        if isinstance(old, dict) and isinstance(new, dict):
            for key, inner in new.items():
                if isinstance(inner, (dict, list)) and key in old:
                    self._attach(old[key], inner)
        elif isinstance(old, list) and isinstance(new, list):
            for inner_old, inner_new in zip(old, new, strict=False):
                if isinstance(inner_new, (dict, list)):
                    self._attach(inner_old, inner_new)


def _ids(document: Document) -> list[Any]:
    steps = document.value["pipeline"].get("steps")
    if not isinstance(steps, list):
        return []
    return [step.get("id") if isinstance(step, dict) else None for step in steps]


def _step_of(path: str, ids: list[Any]) -> int | None:
    """Return the place of the step that `path` leads into; None for a path outside of steps."""
    parts = split_path(path)
    parts = parts[1:] if parts[0] == "pipeline" else parts
    if parts[0] != "steps":
        return None
    rest = ".".join(parts[1:])
    fitting = [i for i in ids if isinstance(i, str) and rest.startswith(f"{i}.")]
    return ids.index(max(fitting, key=len)) if fitting else None


def _name(value: Any) -> str:
    return canonical_json(value)
