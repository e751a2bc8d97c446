"""The picture of a sweep's metric against one of its parameters.

It knows numbers and names alone; a PNG file as bytes is what comes back. Called by `sweep show`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from nexa_hpc.backends.hf.curves import BLUE, GREEN, INK, MUTED, ORANGE
from nexa_hpc.backends.sweep_axes import (
    DPI,
    Scale,
    Value,
    dress,
    in_order,
    plain,
    png,
    shortened,
    spans,
)

_COLOURS = (BLUE, ORANGE, GREEN, "#dc2626", "#7c3aed", "#0891b2")
GROUPS_AT_MOST = len(_COLOURS)
"""More groups than this could not be told apart."""
_LOG_FROM_Y = 100.0
_PLACES_JOINED = 12
"""Dots at more places than this are not joined one by one."""
_BINS = 8


@dataclass(frozen=True)
class Dot:
    """One point of a sweep, or the mean of several."""

    x: Value
    y: float
    spread: float | None = None
    """The deviation of the values that `y` is the mean of."""
    group: str = ""
    """The value of the parameter that gives the colour."""


def draw_against(
    parameter: str, metric: str, dots: Sequence[Dot], *, grouped_by: str = "", note: str = ""
) -> bytes:
    """Draw `metric` against `parameter`, a line or bar through the means, coloured by group.

    Numbers stand on an axis of numbers, logarithmic where they span much; other values are strips,
    in the order of `dots`. `note` says what a dot is.
    """
    scale = Scale.of([dot.x for dot in dots])
    groups = in_order([dot.group for dot in dots])
    width = 6.4 if scale.numeric else min(14.0, max(6.4, 1.6 + 0.75 * len(scale.names)))
    figure = Figure(figsize=(width + (1.4 if len(groups) > 1 else 0), 4.2), dpi=DPI)
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    scale.dress(axes)
    for index, group in enumerate(groups):
        color = _COLOURS[index % len(_COLOURS)]
        chosen = [dot for dot in dots if dot.group == group]
        shift = 0.0 if scale.numeric else _dodge(index, len(groups))
        _draw_group(axes, scale, chosen, color, shift, shortened(group) if group else None)
    axes.set_xlabel(plain(parameter), color=MUTED)
    axes.set_title(plain(metric), loc="left", color=INK, fontweight="bold", fontsize=12)
    axes.set_title(plain(note), loc="right", color=MUTED, fontsize=9)
    axes.margins(y=0.12)
    if spans([dot.y for dot in dots], _LOG_FROM_Y):
        axes.set_yscale("log")
    dress(axes)
    if len(groups) > 1:
        legend = figure.legend(
            *axes.get_legend_handles_labels(),
            title=shortened(grouped_by),
            loc="outside right upper",
            frameon=False,
            labelcolor=INK,
            fontsize=9,
        )
        legend.get_title().set_color(MUTED)
    return png(figure)


def _draw_group(
    axes: Any, scale: Scale, dots: Sequence[Dot], color: str, shift: float, name: str | None
) -> None:
    at: dict[float, list[Dot]] = {}
    for dot in dots:
        at.setdefault(scale.place(dot.x), []).append(dot)
    places = sorted(at)
    means = [statistics.fmean(dot.y for dot in at[place]) for place in places]
    many = any(len(found) > 1 for found in at.values()) or len(dots) > _PLACES_JOINED
    if scale.numeric:
        line = (places, means) if len(places) <= _PLACES_JOINED else _binned(at)
        axes.plot(*line, color=color, linewidth=2, label=name, zorder=3)
    else:
        moved = [place + shift for place in places]
        axes.hlines(
            means,
            [place - 0.08 for place in moved],
            [place + 0.08 for place in moved],
            color=color,
            linewidth=2.5,
            label=name,
            zorder=4,
        )
    for place in places:
        found = at[place]
        jitter = [0.0 if scale.numeric else _jitter(i, len(found)) for i in range(len(found))]
        axes.errorbar(
            [place + shift + moved for moved in jitter],
            [dot.y for dot in found],
            yerr=[dot.spread or 0 for dot in found] if any(d.spread for d in found) else None,
            fmt="o",
            color=color,
            markersize=6 if not many else 4.5,
            alpha=1 if not many else 0.55,
            markeredgecolor="white",
            markeredgewidth=0.6,
            elinewidth=1.4,
            capsize=3,
            zorder=5,
        )


def _binned(at: Mapping[float, Sequence[Dot]]) -> tuple[list[float], list[float]]:
    """Return the means of even shares of the dots: a line through every one would be a zigzag."""
    dots = [(place, dot.y) for place in sorted(at) for dot in at[place]]
    share = math.ceil(len(dots) / _BINS)
    bins = [dots[start : start + share] for start in range(0, len(dots), share)]
    return (
        [statistics.median(place for place, _ in found) for found in bins],
        [statistics.fmean(y for _, y in found) for found in bins],
    )


def _dodge(index: int, count: int) -> float:
    return min(0.24, 0.64 / count) * (index - (count - 1) / 2)


def _jitter(index: int, count: int) -> float:
    """Return a shift that is the same in every picture, and no pattern to the eye."""
    return 0.0 if count == 1 else 0.13 * (((index * 0.618034) % 1.0) - 0.5)
