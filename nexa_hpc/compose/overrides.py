"""What the texts of overrides ask for, in Hydra's own grammar.

    cluster=mysite  +train=small  ~eval        choose, add or leave out an option of a group
    steps.train.params.lr=3e-5  train.lr=1     set a value; `+` adds one, `~` deletes one
    a=1,2  a=range(1,4)  a=choice(x,y)  a=glob(b*)     a sweep, with -m

Keys are taken as they are, since ids of steps may have dots and dashes; the values are Hydra's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nexa_hpc.compose.failing import hydra_imported
from nexa_hpc.core.overriding import Change
from nexa_hpc.core.quoting import shown
from nexa_hpc.errors import UserError, nearest

Options = Callable[[str], "Iterable[str] | None"]
"""The options of a group, or None where there is no such group."""

_OVERRIDE = re.compile(
    r"(?P<sign>\+\+|\+|~|)(?P<key>[^=\s+~][^=\s]*)(?:=(?P<value>.*))?", re.DOTALL
)
_SWEEP_WORDS = re.compile(r"(choice|range|glob|shuffle|sort|tag|interval)\(")


@dataclass(frozen=True)
class Override:
    """One override, understood."""

    change: Change
    is_group: bool
    values: tuple[Any, ...] | None = None
    """Those of a sweep; None for a single value."""

    @property
    def key(self) -> str:
        """The group or the path, with its sign, as points name it."""
        return _SIGN[self.change.kind] + self.change.path

    def at(self, value: Any) -> Override:
        """Return the sweep's point at `value`."""
        text = f"{self.key}={value}"
        return replace(self, change=replace(self.change, value=value, text=text), values=None)


_SIGN = {"set": "", "add": "+", "force": "++", "delete": "~"}


def parse_overrides(
    texts: Sequence[str], options: Options, *, multirun: bool = False
) -> list[Override]:
    """Return what `texts` ask for; raises UserError with the text, the place and what to write."""
    found = [parse_override(text, options) for text in texts]
    sweeps = [one for one in found if one.values is not None]
    if sweeps and not multirun:
        one = sweeps[0]
        raise one.change.refused(
            f"a sweep of {len(one.values or ())} values, and this is a single run",
            hint="add -m (--multirun) to run them all, or quote it if it is one value: "
            f"'{one.key}=\"…\"'",
        )
    _refuse_twice(found)
    return found


def parse_override(text: str, options: Options) -> Override:
    """Return what `text` asks for."""
    match = _OVERRIDE.fullmatch(text)
    if match is None:
        raise UserError(
            f"override '{shown(text)}': expected KEY=VALUE, +KEY=VALUE or ~KEY",
            hint="steps.train.params.lr=3e-5 sets a value, cluster=mysite chooses an option",
        )
    sign, key, told = match["sign"], match["key"], match["value"]
    if told is None and sign != "~":
        raise UserError(f"override '{shown(text)}': a value is missing; write {shown(key)}=VALUE")
    if key.startswith(("hydra.", "hydra/")):
        raise UserError(
            f"override '{shown(text)}': settings of Hydra itself have no meaning here",
            hint="--config-dir FOLDER adds to the search path",
        )
    if told is None:
        return Override(Change.of(f"~{key}", text=text), options(key) is not None)
    return _valued(text, sign, key, told, options(key.partition("@")[0]))


def _valued(text: str, sign: str, key: str, told: str, options: Iterable[str] | None) -> Override:
    """Return the override that gives `key`, of a group if it has `options`, a value."""
    value, values = read_value(text, told, options)
    change = Change.of(f"{sign}{key}", value, text)
    _refuse_unreal(change, value if values is None else list(values))
    of_group = options is not None and all(
        isinstance(one, (str, list)) for one in ([value] if values is None else values)
    )
    if of_group and options is not None:
        _refuse_unknown(change, [value] if values is None else values, sorted(options))
    if values is not None and sign == "~":
        raise change.refused("a sweep cannot delete")
    return Override(change, of_group, values)


def read_value(
    text: str, told: str, options: Iterable[str] | None = None
) -> tuple[Any, tuple[Any, ...] | None]:
    """Return the value that `told`, a part of the override `text`, stands for; of a sweep, all.

    A plain word, number or path needs no parser.
    """
    if _is_plain(told):
        return told, None
    return _by_hydra(text, told, options)


_PLAIN = re.compile(r"[A-Za-z_./][\w./-]*")
_WORDS = frozenset({"true", "false", "null", "nan", "inf"})


def _is_plain(told: str) -> bool:
    return (
        _PLAIN.fullmatch(told) is not None
        and told.lower() not in _WORDS
        and (not re.match(r"\.\d", told))
    )


def _by_hydra(
    text: str, told: str, options: Iterable[str] | None
) -> tuple[Any, tuple[Any, ...] | None]:
    with hydra_imported():
        from hydra.core.override_parser.overrides_parser import OverridesParser
        from hydra.core.override_parser.types import Glob, IntervalSweep
        from hydra.core.override_parser.types import Override as Theirs
        from hydra.errors import HydraException
    try:
        parsed = OverridesParser.create().parse_override(f"x={told}")
    except HydraException as error:
        raise _ungrammatical(text, told, error) from error
    if not parsed.is_sweep_override():
        return parsed.value(), None
    sweep: Any = parsed._value
    if isinstance(sweep, IntervalSweep):
        raise UserError(
            f"override '{shown(text)}': interval() is for optimisers, it names no values",
            hint="range(start, stop, step) and choice(a, b) do",
        )
    if isinstance(sweep, Glob):
        if options is None:
            raise UserError(
                f"override '{shown(text)}': glob() chooses among the options of a group, and "
                "this is none",
                hint="nexa-hpc config groups",
            )
        return None, _some(text, sweep.filter(sorted(options)), sorted(options))
    return None, _some(text, [Theirs._convert_value(v) for v in parsed.sweep_iterator()], [])


def _some(text: str, values: list[Any], options: list[str]) -> tuple[Any, ...]:
    if not values:
        there = f" (there: {', '.join(options)})" if options else ""
        raise UserError(f"override '{shown(text)}': an empty sweep, of no values{there}")
    return tuple(values)


def _ungrammatical(text: str, told: str, error: Exception) -> UserError:
    """Return the error of Hydra's parser with the place in `text`."""
    cause = error.__cause__
    token = getattr(cause, "offendingToken", None)
    column = token.column if token is not None else getattr(cause, "startIndex", None)
    said = str(error).splitlines()[0].partition("\nSee ")[0]
    place = ""
    if column is not None and column >= 2:
        at = len(text) - len(told) + column - 2
        place = (
            f" at '{shown(text[at:])}' (character {at + 1})" if at < len(text) else " at its end"
        )
    key = shown(text[: len(text) - len(told)])
    return UserError(
        f"override '{shown(text)}': not understood{place}: {said}",
        hint=f"quote a value with such characters, for the shell and once more: '{key}\"…\"'",
    )


def _refuse_unknown(change: Change, values: Iterable[Any], options: Sequence[str]) -> None:
    names = (n for value in values for n in (value if isinstance(value, list) else [value]))
    for name in names:
        if name not in options:
            there = f" (there: {', '.join(options)})"
            raise change.refused(f"no such option{nearest(name, options)}{there}")


def _refuse_unreal(change: Change, value: Any) -> None:
    """Raise UserError for NaN and infinities, which no key can have, and keys that are no text."""
    if isinstance(value, float) and not math.isfinite(value):
        raise change.refused(f"{value} is not a finite number")
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise change.refused(f"the key {key} in it must be text; quote it")
    inner = value.values() if isinstance(value, Mapping) else value
    if isinstance(value, (Mapping, list, tuple)):
        for one in inner:
            _refuse_unreal(change, one)


def _refuse_twice(overrides: Sequence[Override]) -> None:
    keys: dict[str, Override] = {}
    for one in overrides:
        other = keys.setdefault(one.change.path, one)
        if other is not one and (one.values is not None or other.values is not None):
            raise one.change.refused(f"'{shown(other.change.text)}' says something else of it")
