"""What the pictures of a sweep share: where values stand on an axis, how names are written.

Called by `sweep_plots` and `sweep_parallel`.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

from nexa_hpc.backends.hf.curves import GRID, MUTED

DPI = 144
LONGEST_NAME = 16
_LOG_FROM = 30.0
"""Values that span more than this are drawn on a logarithmic axis."""
_TICKS_NAMED = 8
_NAMES_AT_MOST = 36

Value = float | int | str | bool | None


@dataclass(frozen=True)
class Scale:
    """Where the values of a parameter stand on an axis."""

    numbers: tuple[float, ...]
    """The values by size; empty where some are no numbers."""
    names: tuple[str, ...]
    """The values as texts, where some are no numbers."""

    @classmethod
    def of(cls, values: Sequence[Value]) -> Scale:
        """Return the scale of an axis on which `values` stand."""
        if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
            return cls(tuple(sorted({float(v or 0) for v in values})), ())
        return cls((), tuple(in_order([_said(v) for v in values])))

    @property
    def numeric(self) -> bool:
        """Whether all values are numbers."""
        return bool(self.numbers)

    @property
    def logarithmic(self) -> bool:
        """Whether the values span so much that their magnitudes are shown."""
        return spans(self.numbers, _LOG_FROM)

    def place(self, value: Value) -> float:
        """Return the coordinate of `value`."""
        return float(value or 0) if self.numeric else float(self.names.index(_said(value)))

    def height(self, value: Value) -> float:
        """Return where `value` stands between 0 and 1."""
        if not self.numeric:
            return self.place(value) / (len(self.names) - 1) if len(self.names) > 1 else 0.5
        measure: Callable[[float], float] = math.log if self.logarithmic else float
        low, high = measure(self.numbers[0]), measure(self.numbers[-1])
        return (measure(self.place(value)) - low) / (high - low) if high > low else 0.5

    def ticks(self) -> list[tuple[float, str]]:
        """Return heights and names of the values to be named."""
        if not self.numeric:
            step = math.ceil(len(self.names) / 24)
            return [(self.height(n), shortened(n)) for n in self.names[::step]]
        if len(self.numbers) <= _TICKS_NAMED:
            return _apart([(self.height(n), f"{n:.4g}") for n in self.numbers])
        low, high = self.numbers[0], self.numbers[-1]
        if self.logarithmic:
            between = [low * (high / low) ** (i / 4) for i in range(5)]
        else:
            between = [low + (high - low) * i / 4 for i in range(5)]
        return [(i / 4, f"{n:.3g}") for i, n in enumerate(between)]

    def dress(self, axes: Any) -> None:
        """Set up the horizontal axis."""
        if not self.numeric:
            step = math.ceil(len(self.names) / _NAMES_AT_MOST)
            names = [shortened(name) for name in self.names[::step]]
            crowded = len(names) > 20 or sum(map(len, names)) > 60
            tilt = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
            axes.set_xticks(range(0, len(self.names), step), names, **tilt)
            axes.set_xlim(-0.6, len(self.names) - 0.4)
            return
        if self.logarithmic:
            axes.set_xscale("log")
            # Room on both sides: a margin on a logarithmic axis is a part of its decades.
            axes.margins(x=0.07)
        if len(self.numbers) <= _TICKS_NAMED:
            shown = _apart([(self.height(n), f"{n:.4g}") for n in self.numbers], least=0.07)
            kept = [text for _, text in shown]
            values = [n for n in self.numbers if f"{n:.4g}" in kept]
            axes.xaxis.set_major_locator(FixedLocator(values))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_xticks(values, [f"{n:.4g}" for n in values])


def _apart(ticks: list[tuple[float, str]], least: float = 0.045) -> list[tuple[float, str]]:
    """Return `ticks` without those that would lie on the one before; the last one stays."""
    kept: list[tuple[float, str]] = []
    for tick in ticks:
        if kept and tick[0] - kept[-1][0] < least:
            if tick != ticks[-1] or len(kept) == 1:
                continue
            kept.pop()
        kept.append(tick)
    return kept


def spans(values: Sequence[float], factor: float) -> bool:
    """Return whether positive `values` span more than that factor."""
    return bool(values) and min(values) > 0 and max(values) > factor * min(values)


def in_order(names: Sequence[str]) -> list[str]:
    """Return the names, each once: numbers by size, others as they come, as the sweep has them."""
    each = list(dict.fromkeys(names))
    try:
        return sorted(each, key=float)
    except ValueError:
        return each


def _said(value: Value) -> str:
    if value is None:
        return "(unset)"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def plain(text: str) -> str:
    """Return `text` as matplotlib is to print it: a dollar would begin a formula."""
    return text.replace("$", r"\$")


def shortened(text: str) -> str:
    """Return `text` as the name of a value: not too long, and as matplotlib is to print it."""
    return plain(text if len(text) <= LONGEST_NAME else text[: LONGEST_NAME - 1] + "…")


def dress(axes: Any) -> None:
    """Give `axes` the look of our other pictures."""
    axes.grid(axis="y", color=GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID)
    axes.tick_params(colors=MUTED, length=0, which="both")


def png(figure: Any) -> bytes:
    """Return the drawn figure as a PNG file."""
    sink = io.BytesIO()
    with warnings.catch_warnings():
        # Its font has no sign for some letter of a name: a box stands there.
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        figure.savefig(sink, format="png")
    return sink.getvalue()
