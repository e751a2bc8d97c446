"""The picture of all parameters of a sweep at once: parallel coordinates.

It knows numbers and names alone. Called by `sweep show`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from nexa_hpc.backends.hf.curves import INK, MUTED
from nexa_hpc.backends.sweep_axes import DPI, LONGEST_NAME, Scale, Value, plain, png

_MAP = "viridis"
_MANY_LINES = 60


def draw_parallel(
    metric: str,
    axes_of: Mapping[str, Sequence[Value]],
    scores: Sequence[float],
    *,
    lowest: bool,
    note: str = "",
) -> bytes:
    """Draw each point as a line over one axis for each parameter, coloured by `metric`.

    `axes_of` has for each parameter the value of every point; the best line, the `lowest` or the
    highest, is drawn last and thickest.
    """
    names = [*axes_of, metric]
    scales = [Scale.of(values) for values in axes_of.values()] + [Scale.of(scores)]
    columns = [*axes_of.values(), scores]
    width = min(18.0, 2.4 + 1.9 * len(names))
    figure = Figure(figsize=(width, 4.6), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    colour = _colours(scores, scales[-1], lowest=lowest)
    best = min(scores) if lowest else max(scores)
    first = list(scores).index(best)
    worth = [-score if lowest else score for score in scores]
    order = sorted(range(len(scores)), key=lambda i: (i == first, worth[i]))
    alpha = 0.85 if len(scores) <= _MANY_LINES else 0.35
    for i in order:
        heights = [s.height(c[i]) for s, c in zip(scales, columns, strict=True)]
        is_best = i == first
        if is_best:
            axes.plot(heights, color=INK, linewidth=4.6, zorder=6, solid_capstyle="round")
        axes.plot(
            heights,
            color=colour.to_rgba(scores[i]),
            linewidth=2.6 if is_best else 1.4,
            alpha=1 if is_best else alpha,
            zorder=7 if is_best else 3,
        )
    for position, scale in enumerate(scales):
        _draw_axis(axes, position, scale)
    axes.set_xticks(range(len(names)), [_wrapped(name) for name in names])
    for tick in axes.get_xticklabels()[-1:]:
        tick.set_fontweight("bold")
    axes.set(yticks=[], xlim=(-0.3, len(names) - 0.7), ylim=(-0.05, 1.05))
    axes.spines[:].set_visible(False)
    axes.xaxis.tick_top()
    axes.tick_params(colors=INK, length=0)
    bar = figure.colorbar(colour, ax=axes, fraction=0.035, pad=0.01)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=MUTED, length=0, labelsize=8)
    if lowest:
        bar.ax.invert_yaxis()
    bar.set_label("the best on top", color=MUTED)
    axes.set_xlabel(plain(note), color=MUTED, fontsize=9)
    return png(figure)


def _colours(scores: Sequence[float], scale: Scale, *, lowest: bool) -> Any:
    """Return the colours of scores; the better, the darker."""
    low, high = min(scores), max(scores)
    if scale.logarithmic:
        norm: Any = LogNorm(low, high)
    else:
        room = 0.0 if high > low else abs(high) or 1.0
        norm = Normalize(low - room, high + room)
    return ScalarMappable(norm, colormaps[_MAP if lowest else f"{_MAP}_r"])


def _draw_axis(axes: Any, position: int, scale: Scale) -> None:
    axes.axvline(position, color=MUTED, linewidth=1, zorder=2)
    for height, name in scale.ticks():
        axes.annotate(
            name,
            (position, height),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=INK,
            zorder=8,
            bbox={"boxstyle": "round,pad=0.12", "fc": "white", "ec": "none", "alpha": 0.8},
        )


def _wrapped(name: str) -> str:
    """Return a name as the head of an axis: its parts below each other where it is long."""
    return plain(name if len(name) <= LONGEST_NAME else name.replace(".", ".\n"))
