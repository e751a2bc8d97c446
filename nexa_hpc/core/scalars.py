"""The one scalar resolver: what a plain YAML word stands for, exactly as OmegaConf's loader has it.

YAML 1.1 words (`yes`, `off`, `~`, `0x1F`, `1:30`) as PyYAML reads them, plus OmegaConf's floats
(`2e-5` is a number), and dates stay text. NaN and infinities are refused: JSON does not have them,
so a step key cannot. Called by `yaml_reading`. Standard library alone.
"""

from __future__ import annotations

import math
import re
from functools import lru_cache

from nexa_hpc.core.quoting import shown

Scalar = None | bool | int | float | str
KINDS = (NULL, BOOL, INT, FLOAT, STR) = ("null", "bool", "int", "float", "str")

_WORDS: dict[str, bool | None] = {"": None, "~": None, "null": None, "Null": None, "NULL": None}
for _word, _value in {"yes": True, "true": True, "on": True, "no": False, "false": False}.items():
    _WORDS |= {_word: _value, _word.title(): _value, _word.upper(): _value}
_WORDS |= {"off": False, "Off": False, "OFF": False}

_MAX_DIGITS = 1000
_NUMBER_STARTS = frozenset("-+.0123456789")
_INT = re.compile(
    r"""[-+]?(?: 0b[01_]+ | 0x[0-9a-fA-F_]+ | 0[0-7_]+ | 0
               | [1-9][0-9_]* (?: : [0-5]?[0-9] )* )""",
    re.VERBOSE,
)
_FLOAT = re.compile(
    r"""[-+]? [0-9][0-9_]* \. [0-9_]* (?: [eE][-+][0-9]+ )?
      | [-+]? [0-9]+ (?: _[0-9]+ )* (?: \. [0-9_]* )? [eE][-+]?[0-9]+
      | \. [0-9][0-9_]* (?: [eE][-+][0-9]+ )?
      | [-+]? [0-9][0-9_]* (?: : [0-5]?[0-9] )+ \. [0-9_]*
      | [-+]? \. (?: inf | Inf | INF )
      | \. (?: nan | NaN | NAN )""",
    re.VERBOSE,
)


@lru_cache(maxsize=4096)
def resolve(word: str) -> Scalar:
    """Return what the plain `word` stands for; raises ValueError for NaN and torn numbers."""
    if word in _WORDS:
        return _WORDS[word]
    if word[0] not in _NUMBER_STARTS:
        return word
    if _INT.fullmatch(word):
        return _to_int(word)
    return _to_float(word) if _FLOAT.fullmatch(word) else word


def convert(word: str, kind: str) -> Scalar:
    """Return `word` as the `kind` that a tag asks for; raises ValueError if it is none."""
    if kind == STR:
        return word
    value = resolve(word)
    if kind == FLOAT and type(value) is int:
        value = float(value)
    if kind_of(value) != kind:
        raise ValueError(f"'{shown(word)}' is no {kind}")
    return value


def kind_of(value: Scalar) -> str:
    """Return the name of the kind of `value`, as in the tag that would ask for it."""
    return NULL if value is None else type(value).__name__


def _to_int(word: str) -> int:
    # Python takes quadratic time for long ones, or refuses to print them again.
    if len(word) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(word):,} digits")
    digits = word.replace("_", "").lstrip("+-")
    base = {"0b": 2, "0x": 16}.get(digits[:2], 8 if digits[0] == "0" else 10)
    body = digits[2:] if base in (2, 16) else digits
    if not body:
        raise ValueError(f"'{word}' is no number")
    if ":" in digits:
        value = _sexagesimal([int(part) for part in digits.split(":")])
    else:
        value = int(body, base)
    return -int(value) if word[0] == "-" else int(value)


def _to_float(word: str) -> float:
    digits = word.replace("_", "").lower()
    if ":" in digits:
        value = _sexagesimal([float(part) for part in digits.lstrip("+-").split(":")])
        value = -value if word[0] == "-" else value
    else:
        value = float(digits.replace(".inf", "inf").replace(".nan", "nan"))
    if not math.isfinite(value):
        raise ValueError(f"'{shown(word)}' is not a finite number")
    return value


def _sexagesimal(parts: list[int] | list[float]) -> float:
    """Return `parts` as one number in base 60, as in 1:30 = 90."""
    # Added up from the right, as PyYAML does: another order rounds otherwise.
    total: float = 0
    for power, part in enumerate(reversed(parts)):
        total += part * 60**power
    return total
