"""What a promotion asks of a version's figures before a tag moves: the `require` of a promote step.

    require: {metric: eval.accuracy, min: 0.85, better_than: movie-sentiment@production}

`metric` is a number in the `metrics.json` of a step above, after that step's id, or in the meta
that the version was registered with. `min` and `max` are bounds, themselves allowed. `better_than`
asks for strictly more (or less: `mode: min`) than the same metric in the meta of that version; a
tag that does not exist yet, and the very version that is promoted, ask for nothing. Without `mode`
it is guessed from the metric's name, and said. Called by `promote`. Standard library alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from nexa_hpc.core.best import METRICS, flat, number
from nexa_hpc.core.handlers import Task
from nexa_hpc.core.quoting import shown
from nexa_hpc.core.reading import read_json_or_none
from nexa_hpc.core.registry import Registry
from nexa_hpc.core.registry_entries import Version
from nexa_hpc.core.registry_names import Reference
from nexa_hpc.errors import RegistryError, StepError, nearest

_KEYS = ("metric", "min", "max", "better_than", "mode")
_ASKING = ("min", "max", "better_than")
_MODES = ("max", "min")


class _Figure(NamedTuple):
    value: float
    step: str | None
    """The step above whose metrics hold it; None where the version's meta does."""


def problems(require: Any, params: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (key, message) for what is wrong with the `require` among the `params` of a step."""
    if not isinstance(require, Mapping):
        yield "params.require", "expected {metric: step.metric, min: …, max: …, better_than: …}"
        return
    for key in require:
        if key not in _KEYS:
            offered = nearest(str(key), _KEYS) or f" (it takes: {', '.join(_KEYS)})"
            yield f"params.require.{shown(str(key))}", f"unknown key{offered}"
    metric = require.get("metric")
    if not isinstance(metric, str) or not metric.strip("."):
        yield "params.require.metric", "say which figure, as in eval.accuracy"
    if not any(require.get(key) is not None for key in _ASKING):
        yield "params.require", f"asks for nothing: give {', '.join(_ASKING[:-1])} or better_than"
    yield from _wrong_bounds(require)
    if require.get("mode") not in (None, *_MODES):
        yield "params.require.mode", f"expected {' or '.join(_MODES)}"
    yield from _wrong_version(require.get("better_than"), params)


def _wrong_bounds(require: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key in ("min", "max"):
        value = require.get(key)
        if value is not None and (number(value) is None or isinstance(value, bool)):
            yield f"params.require.{key}", f"expected a number, got {shown(str(value))}"
    least, most = number(require.get("min")), number(require.get("max"))
    if least is not None and most is not None and least > most:
        yield "params.require.min", f"no number is at least {least:g} and at most {most:g}"


def _wrong_version(text: Any, params: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if text is None:
        return
    try:
        named = Reference.parse(text) if isinstance(text, str) else None
    except RegistryError as error:
        yield "params.require.better_than", f"{error}" + (f"; {error.hint}" if error.hint else "")
        return
    if named is None:
        yield "params.require.better_than", "expected a version, as in name@production"
        return
    # A tag that does not exist asks for nothing: a slip of the pen must not be one.
    tag = params.get("tag")
    near = nearest(named.tag, [tag]) if named.tag and isinstance(tag, str) else ""
    if near and named.tag != tag:
        yield "params.require.better_than", f"the tag of this step is '{tag}', not '{named.tag}'"


def named_step(require: Mapping[str, Any]) -> str | None:
    """Return what stands before the first dot of the metric: a step's id, if there is one."""
    metric = require.get("metric")
    first, dot, _ = metric.partition(".") if isinstance(metric, str) else ("", "", "")
    return first if dot else None


def check(require: Mapping[str, Any], version: Version, task: Task, registry: Registry) -> str:
    """Return in words that `version` has what is required.

    Raises StepError where it has not, or where that cannot be told; RegistryError for a version to
    compare with that does not exist.
    """
    metric = require["metric"]
    figure = _figure(metric, version, task)
    words = [f"{metric} is {figure.value:g}"]
    for key, is_within in (("min", figure.value.__ge__), ("max", figure.value.__le__)):
        bound = require.get(key)
        if bound is not None and not is_within(float(bound)):
            side = "below" if key == "min" else "above"
            raise StepError(f"{metric} of {version} is {figure.value:g}, {side} {key} {bound:g}")
        words += [f"{key} {bound:g}"] if bound is not None else []
    if require.get("better_than") is not None:
        words.append(_better(require, figure, version, registry))
    return ", ".join(words)


def _better(
    require: Mapping[str, Any], figure: _Figure, version: Version, registry: Registry
) -> str:
    metric, named = require["metric"], Reference.parse(require["better_than"])
    other = _version_to_beat(named, version, registry)
    if other is None:
        return f"there is no {named} yet to be better than"
    if (other.model, other.number) == (version.model, version.number):
        return f"{named} is this version already"
    found = _in_meta(metric, other)
    if found is None:
        raise StepError(
            f"{named} ({other}) was registered without a number '{metric}': there is nothing to "
            "compare with",
            hint="register it with `meta`, or leave better_than away once",
        )
    mode, guessed = require.get("mode"), ""
    if mode is None:
        # Imported here: what works on tables of sweeps is a lot for one word.
        from nexa_hpc.core.sweep_figures import guess_mode

        mode = guess_mode(metric if figure.step is not None else f".{metric}")
        guessed = ", guessed from its name"
    better = figure.value > found if mode == "max" else figure.value < found
    which = f"{'more' if mode == 'max' else 'less'} is better{guessed}"
    if not better:
        raise StepError(
            f"{metric} of {version} is {figure.value:g}, no better than {found:g} of {named} "
            f"({other}); {which}"
        )
    return f"better than {found:g} of {named} ({other}; {which})"


def _version_to_beat(named: Reference, version: Version, registry: Registry) -> Version | None:
    """Return the version that is `named`; None for a tag that does not exist yet."""
    if named.tag is not None and (named.model == version.model or named.model in registry.models()):
        tag = registry.current(named.model, named.tag)
        if tag is None or tag.version is None:
            return None
    return registry.find(str(named))


def _figure(metric: str, version: Version, task: Task) -> _Figure:
    """Return the metric of `version`: from the step above that is named, else from its meta."""
    step, dot, rest = metric.partition(".")
    above = [found for found in task.upstream.values() if found["step"] == step] if dot else []
    judging = above if len(above) < 2 else [a for a in above if _concerns(a, version)]
    names: list[str] = []
    for found in judging if len(judging) == 1 else ():
        figures = _metrics(found["results"])
        value = number(figures.get(rest))
        if value is not None:
            return _Figure(value, step)
        names = [f"{step}.{name}" for name, v in figures.items() if number(v) is not None]
    value = _in_meta(metric, version)
    if value is not None:
        return _Figure(value, step if above else None)
    raise StepError(_lacking(metric, version, len(above), names))


def _lacking(metric: str, version: Version, above: int, names: list[str]) -> str:
    step = metric.partition(".")[0]
    if above > 1 and not names:
        return (
            f"which '{metric}' is that of {version}: step '{step}' has {above} results, and not "
            "one of them alone is of this version; register it with `meta`"
        )
    names = names or [name for name, v in flat(version.meta) if number(v) is not None]
    there = nearest(metric, names) or (f" (there are: {', '.join(names)})" if names else "")
    where = f"{METRICS} of step '{step}' nor" if above else ""
    prefix = f"neither the {where}" if where else "not"
    return f"there is no finite number '{metric}': {prefix} the meta of {version} has it{there}"


def _concerns(above: Mapping[str, Any], version: Version) -> bool:
    """Return whether a step made the files of `version`, or read them."""
    made = os.path.realpath(version.path)
    places = [*above["results"].values(), *above["inputs"].values()]
    return any(Path(os.path.realpath(place)).is_relative_to(made) for place in places)


def _metrics(results: Mapping[str, Path]) -> dict[str, Any]:
    for folder in results.values():
        found = read_json_or_none(folder / METRICS)
        if isinstance(found, dict):
            return dict(flat(found))
    return {}


def _in_meta(metric: str, version: Version) -> float | None:
    """Return the metric as a register step notes it: under its name in the step that found it."""
    figures = dict(flat(version.meta))
    value = number(figures.get(metric))
    return value if value is not None else number(figures.get(metric.partition(".")[2]))
