"""The layers laid over each other: options, then the values of each `config.yaml`, and locks.

    defaults: [scheduler: slurm, cluster: mysite]    which options; the highest layer decides
    scheduler: {max_running: 100}                    values, over those of the options
    locked: [scheduler.max_running]                  in the site's layer alone

Options are read as our documents are, so that an error names the line; one with a `defaults:` list
of its own is composed by Hydra. Called by `site` where it has no fresh answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nexa_hpc.compose.interpolation import BeyondUs, Resolver
from nexa_hpc.compose.layers import (
    GROUPS,
    OURS,
    PACKAGE,
    PROJECT,
    SECTIONS,
    SITE,
    Layer,
    find_option,
    group_options,
)
from nexa_hpc.compose.origins import Origin, Origins, Place, find, lay_over
from nexa_hpc.compose.secrets import refuse_secrets
from nexa_hpc.core.document import Document, read_document
from nexa_hpc.core.quoting import shown
from nexa_hpc.errors import Problem, SpecError, UserError, nearest


def lay(
    layers: Sequence[Layer],
    groups: Sequence[str],
    choices: Mapping[str, str],
    cluster: str | None,
) -> dict[str, Any]:
    """Return what `layers` say of the sections behind `groups`, as JSON holds it.

    `choices` are those of whoever stands above the layers; `cluster` is Slurm's ClusterName, the
    option of that name holds where nobody chooses. Raises UserError, SpecError.
    """
    bodies = [(layer, _body(layer)) for layer in layers if layer.config.is_file()]
    chosen, chosen_by = _choices(bodies, layers, groups, choices)
    by_name = "cluster" in groups and "cluster" not in {**choices, **chosen_by}
    if by_name and cluster is not None:
        found = find_option(layers, "cluster", cluster)
        chosen["cluster"] = cluster if found is not None else chosen["cluster"]
    sections = [*groups, *(["retention"] if "paths" in groups else [])]
    origins: Origins = {}
    values = _values(layers, bodies, sections, chosen, origins)
    return {
        "sections": _resolved(values),
        "choices": chosen,
        "chosen_by": chosen_by,
        "origins": origins,
        "locks": _locks(layers, bodies, sections, chosen),
    }


def _body(layer: Layer) -> Document:
    document = read_document(layer.config)
    known = ("defaults", "locked", *SECTIONS)
    problems = []
    for key in document.value:
        meant = nearest(key, known)
        # A project may have a `configs/config.yaml` of its own, for its own programs.
        if key not in known and not key.startswith("x-") and (meant or layer.name != PROJECT):
            more = f"{meant} (allowed: {', '.join(known)}, x-…)"
            problems.append(_problem(document, (key,), f"unknown key '{shown(key)}'{more}"))
    for section in SECTIONS:
        if not isinstance(document.value.get(section) or {}, dict):
            problems.append(_problem(document, (section,), "expected a mapping"))
    locked = document.value.get("locked")
    if locked is not None and layer.name != SITE:
        problems.append(_problem(document, ("locked",), "only the site's layer locks values"))
    elif locked is not None and not _are_paths(locked):
        message = "expected a list of paths, as [scheduler.max_running]"
        problems.append(_problem(document, ("locked",), message))
    if problems:
        raise SpecError(problems)
    return document


def _are_paths(locked: Any) -> bool:
    return isinstance(locked, list) and all(
        isinstance(path, str) and path.partition(".")[0] in SECTIONS and "." in path
        for path in locked
    )


def _problem(document: Document, place: Place, message: str) -> Problem:
    return Problem(message, document.name, document.line_of(place), key=shown(".".join(place)))


def _choices(
    bodies: Sequence[tuple[Layer, Document]],
    layers: Sequence[Layer],
    groups: Sequence[str],
    choices: Mapping[str, str],
) -> tuple[dict[str, str], Origins]:
    """Return group -> option, and who has chosen it."""
    chosen = {group: OURS[group] for group in groups}
    chosen_by: Origins = {}
    for layer, document in bodies:
        for group, option, line in _defaults(document, strict=layer.name != PROJECT):
            if group in chosen:
                chosen[group] = option
                if layer.name != PACKAGE:
                    chosen_by[group] = Origin(layer.name, document.name, line)
    for group, option in choices.items():
        if group in chosen:
            chosen[group] = option
            chosen_by.pop(group, None)
    for group, option in chosen.items():
        options = group_options(layers, group) or {}
        if option not in options and option != OURS[group]:
            raise _no_option(group, option, options, chosen_by.get(group))
    return chosen, chosen_by


def _no_option(
    group: str, option: str, options: Mapping[str, Any], origin: Origin | None
) -> UserError:
    there = f"{nearest(option, options)} (there: {', '.join(options)})"
    place = f"{origin.file}:{origin.line}: " if origin is not None else ""
    return UserError(
        f"{place}{group}={shown(option)}: no such option{there}", hint="nexa-hpc config groups"
    )


def _defaults(document: Document, *, strict: bool) -> list[tuple[str, str, int | None]]:
    """Return group, option and line of each entry of `defaults:`."""
    entries = document.value.get("defaults") or []
    found, problems = [], []
    for number, entry in enumerate(entries if isinstance(entries, list) else [None]):
        place = ("defaults", number)
        line = document.line_of(place)
        pairs = list(entry.items()) if isinstance(entry, dict) else []
        if entry == "_self_":
            continue
        group, option = pairs[0] if len(pairs) == 1 else (None, None)
        if group in GROUPS and isinstance(option, str):
            found.append((group, option, line))
            continue
        if not strict and group not in GROUPS:
            continue
        message = "expected a list of choices, each as `- cluster: mysite`"
        if isinstance(group, str) and group not in GROUPS:
            here = f"here: {', '.join(GROUPS)}"
            message = f"'{shown(group)}' is chosen in a pipeline's own `defaults:`; {here}"
        problems.append(Problem(message, document.name, line, key="defaults"))
    if problems:
        raise SpecError(problems)
    return found


def _values(
    layers: Sequence[Layer],
    bodies: Sequence[tuple[Layer, Document]],
    sections: Sequence[str],
    chosen: Mapping[str, str],
    origins: Origins,
) -> dict[str, Any]:
    """Return section -> values: those of the option, and over them those of the `config.yaml`s."""
    values: dict[str, Any] = {section: {} for section in sections}
    for group, option in chosen.items():
        # Where steps run by default does not say how those that name Slurm are submitted.
        name = "slurm" if (group, option) == ("scheduler", "local") else option
        found = find_option(layers, group, name)
        if found is not None:
            layer, file = found
            document = read_document(file)
            content = _option(document, layers, group, name)
            lay_over(values, {group: content}, _from(layer, document, 1), origins)
    for layer, document in bodies:
        own = {section: document.value.get(section) or {} for section in sections}
        lay_over(values, own, _from(layer, document, 0), origins)
    return values


def _from(layer: Layer, document: Document, skipped: int) -> Callable[[Place], Origin]:
    """Return what tells the origin of a place whose first `skipped` parts the document lacks."""
    return lambda place: Origin(layer.name, document.name, document.line_of(place[skipped:]))


def _option(
    document: Document, layers: Sequence[Layer], group: str, name: str
) -> Mapping[str, Any]:
    # A mapping is the `defaults` of a policy or of a cluster: what its steps ask for.
    if not isinstance(document.value.get("defaults"), list):
        return document.value
    from nexa_hpc.compose.hydra_composing import compose

    folders = [layer.folder for layer in reversed(layers)]
    made = compose({"defaults": [{group: name}]}, folders, (), document.name)
    content = made.value.get(group)
    return content if isinstance(content, dict) else {}


def _locks(
    layers: Sequence[Layer],
    bodies: Sequence[tuple[Layer, Document]],
    sections: Sequence[str],
    chosen: Mapping[str, str],
) -> dict[str, Any]:
    """Return path -> what the site, and what is below it, have there."""
    site = next((one for one in bodies if one[0].name == SITE), None)
    locked = site[1].value.get("locked") if site is not None else None
    if site is None or not locked:
        return {}
    below = layers[: layers.index(site[0]) + 1]
    there = [one for one in bodies if one[0] in below]
    values = _resolved(_values(below, there, sections, chosen, {}))
    document = site[1]
    found = {}
    for number, path in enumerate(locked):
        if path.partition(".")[0] in sections:
            is_set, value = find(values, path)
            origin = Origin(SITE, document.name, document.line_of(("locked", number)))
            found[path] = {"is_set": is_set, "value": value, "origin": origin}
    return found


def _resolved(values: dict[str, Any]) -> dict[str, Any]:
    refuse_secrets(values)
    resolver = Resolver(values)
    try:
        return {section: resolver.value(inner, section) for section, inner in values.items()}
    except BeyondUs:
        from nexa_hpc.compose.hydra_composing import resolve_at

        return {section: resolve_at(values, (section,), "configs") for section in values}
