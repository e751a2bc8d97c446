"""A pipeline file with overrides, as the documents that are planned: one, or one for each point.

A plain file stays what it is: `${…}` in it is literal, and overrides are laid over it. One with a
`defaults:` list is Hydra's primary configuration, and resolved. Hydra composes once for each
combination of options; the points that differ in values alone are made of that on plain mappings,
and share every step that is equal in them.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexa_hpc.compose.layers import GROUPS, SECTIONS, find_layers
from nexa_hpc.compose.overrides import Override, parse_override, parse_overrides
from nexa_hpc.compose.pipelines import Composer, Source
from nexa_hpc.compose.run_config import RunConfig
from nexa_hpc.compose.secrets import refuse_secrets, secret_names
from nexa_hpc.compose.site import SiteConfig
from nexa_hpc.core.collector import without_gc
from nexa_hpc.core.document import Document, read_document
from nexa_hpc.core.overriding import Change
from nexa_hpc.core.points import Point, make_points, point_name
from nexa_hpc.core.quoting import shown
from nexa_hpc.errors import Problem, SpecError, nearest

_ROOTS = ("steps", "pipeline", *SECTIONS)


@dataclass(frozen=True)
class Composed:
    """A pipeline file and its overrides, composed."""

    document: Document
    """Of a plain run, or of the first point."""
    points: tuple[Point, ...]
    """Empty when it is no sweep."""
    documents: tuple[Document, ...]
    """One for each point, in order; steps that are equal are one object in all of them."""
    overrides: tuple[str, ...]
    """As given."""
    config: SiteConfig
    """Scheduler, cluster, paths and retention, composed."""
    choices: dict[str, str]
    """Group -> option, as Hydra took them."""
    config_dirs: tuple[Path, ...]
    source: Source
    """What it was composed of; for whoever shows where a value is from."""

    @property
    def is_plain(self) -> bool:
        """Whether the document is the file as it is written."""
        return not self.overrides and not self.source.is_primary

    def to_json(self) -> dict[str, Any]:
        """Return what a run records: the composed text, and what composes it again."""
        return {
            "text": json.dumps(self.document.value, ensure_ascii=False, indent=1),
            "overrides": list(self.overrides),
            "config_dirs": [str(folder) for folder in self.config_dirs],
        }


def compose_pipeline(
    file: Path,
    root: Path,
    overrides: Sequence[str] = (),
    *,
    multirun: bool = False,
    config_dirs: Sequence[Path] = (),
) -> Composed:
    """Return the pipeline in `file`, of the project at `root`, under `overrides`.

    With `multirun`, overrides may sweep, and the file's `sweep:` does. Raises UserError, SpecError
    for the file itself.
    """
    raw = read_document(file)
    layers = find_layers(root, config_dirs)
    source = Source(raw, file, layers)
    asked = _parsed(source, overrides, multirun)
    if source.is_primary:
        # In a plain file `${…}` is literal, and harmless.
        values = [value for one in asked for value in one.values or [one.change.value]]
        refuse_secrets(values, secret_names(source.raw_steps))
    site = RunConfig(
        root=root,
        config_dirs=tuple(config_dirs),
        raw=raw,
        chosen=_site_choices(asked),
        changes=tuple(o.change for o in asked if _is_site_value(o)),
    )
    groups = [
        o.change.text
        for o in asked
        if o.is_group and o.values is None and o.change.path not in GROUPS
    ]
    composer = Composer(source, groups, site.compose)
    swept = [o for n, o in enumerate(asked) if o.values is not None or _is_late(o, asked[:n])]
    fixed = [o.change for o in asked if not o.is_group and not _is_site_value(o) and o not in swept]
    with without_gc():
        points: tuple[Point, ...] = ()
        if swept:
            config, points, documents = _sweep(composer, fixed, swept)
        else:
            document, config = composer.document((), fixed)
            documents = (document,)
    folders = tuple(Path.cwd() / folder for folder in config_dirs)
    given = tuple(overrides)
    choices = composer.choices
    return Composed(documents[0], points, documents, given, config, choices, folders, source)


def _sweep(
    composer: Composer, fixed: list[Change], swept: list[Override]
) -> tuple[SiteConfig, tuple[Point, ...], tuple[Document, ...]]:
    """Return all points of the product; the last of `swept` varies fastest.

    What has a single value is laid over in its place among the others, and is no part of a point.
    """
    groups = [n for n, one in enumerate(swept) if one.is_group]
    places = [[one.at(value) for value in one.values] if one.values else [one] for one in swept]
    varying = [n for n, one in enumerate(swept) if one.values]
    documents: dict[str, Document] = {}
    configs: list[SiteConfig] = []
    values: list[dict[str, Any]] = []
    for combination in itertools.product(*places):
        varied = [combination[n] for n in varying]
        overridden = {one.key: one.change.value for one in varied}
        name = point_name(overridden)
        if name in documents:
            continue
        chosen = tuple(combination[n].change.text for n in groups)
        changes = [one.change for one in combination if not one.is_group]
        documents[name], config = composer.document(chosen, fixed, changes)
        configs.append(config)
        values.append(overridden)
    points = make_points(values)
    made = tuple(documents[point.name] for point in points)
    return configs[0], points, made


def _is_late(one: Override, before: Sequence[Override]) -> bool:
    """Return whether `one`, of a single value, lies on what is swept `before` it, or around it.

    Then it counts in its place among those, as Hydra has it; all others may be laid over once.
    """
    path = f"{one.change.path}."
    swept = [f"{other.change.path}." for other in before if other.values is not None]
    return not one.is_group and any(s.startswith(path) or path.startswith(s) for s in swept)


def _parsed(source: Source, overrides: Sequence[str], multirun: bool) -> list[Override]:
    """Return the overrides of the command line, below them the file's sweep when it is wanted."""

    def options(group: str) -> list[str] | None:
        found = source.options(group)
        return list(found) if found is not None else None

    given = parse_overrides(overrides, options, multirun=multirun) if overrides else []
    for one in given:
        _refuse_meaningless(source, one)
    if not multirun:
        return given
    return [*_file_sweep(source, {one.change.path for one in given}, options), *given]


def _file_sweep(source: Source, given: set[str], options: Any) -> list[Override]:
    """Return what the file's `sweep:` sweeps, but for the keys that are `given`."""
    section = source.raw.value.get("sweep")
    if section is None:
        return []
    if not isinstance(section, dict):
        raise _wrong(source, (), "expected a mapping of paths to lists of values")
    found = []
    for key, told in section.items():
        if key.lstrip("+") in given:
            continue
        if isinstance(told, str):
            one = parse_override(f"{key}={told}", options)
            if one.values is None:
                raise _wrong(source, (key,), f"'{shown(told)}' is one value: write a list, [a, b]")
        elif isinstance(told, list) and told:
            text = f"{key}={told}"
            one = Override(Change.of(key, told[0], text), options(key) is not None, tuple(told))
        else:
            raise _wrong(source, (key,), "expected a list of values, or a text as range(1, 7)")
        _refuse_meaningless(source, one)
        found.append(one)
    return found


def _wrong(source: Source, place: tuple[str, ...], message: str) -> SpecError:
    line = source.raw.line_of(("sweep", *place))
    key = ".".join(("sweep", *place))
    return SpecError([Problem(message, file=source.raw.name, line=line, key=shown(key))])


def _refuse_meaningless(source: Source, one: Override) -> None:
    """Raise UserError for what would change nothing, or not one run alone."""
    first = one.change.path.partition(".")[0].partition("[")[0].partition("@")[0]
    if one.values is not None and first in SECTIONS:
        raise one.change.refused("scheduler, cluster and paths are one for a whole run")
    if source.is_primary or first in _ROOTS:
        return
    if one.is_group:
        raise one.change.refused(
            f"{source.raw.name} has no `defaults:`, so the group '{shown(first)}' means nothing",
            hint=f"add `defaults: [{shown(first)}: …]` to it, and write ${{{shown(first)}}} where "
            "it is wanted",
        )
    known = [*_ROOTS, *source.step_ids()]
    instead = f"; did you mean 'steps.{first}'?" if first in source.step_ids() else ""
    raise one.change.refused(
        f"there is no '{shown(first)}'{instead or nearest(first, known)} (there: "
        f"{', '.join(_ROOTS)})"
    )


def _is_site_value(one: Override) -> bool:
    return not one.is_group and one.change.path.partition(".")[0] in SECTIONS


def _site_choices(asked: Sequence[Override]) -> dict[str, Change]:
    chosen = {o.change.path: o.change for o in asked if o.is_group and o.values is None}
    found = {group: chosen[group] for group in GROUPS if group in chosen}
    for change in found.values():
        if change.kind == "delete":
            raise change.refused("a run has one; choose another")
    return found
