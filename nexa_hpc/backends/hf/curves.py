"""The picture of a training: losses, and the metrics on the validation rows, over the steps.

Called by training.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

INK, MUTED, GRID = "#1f2933", "#7b8794", "#e4e7eb"
BLUE, ORANGE, GREEN = "#2563eb", "#d97706", "#059669"
_METRICS = {"eval_macro_f1": ("macro-F1", ORANGE), "eval_accuracy": ("accuracy", GREEN)}
_FEW = 12
"""With no more points than this, a line through them is smooth enough."""

Points = tuple[list[int], list[float]]


def draw(history: Sequence[dict[str, Any]], target: Path) -> None:
    """Draw the training whose Trainer logs are `history` into the PNG file `target`."""
    metrics = {name: points for name in _METRICS if (points := _points(history, name))[0]}
    figure = Figure(figsize=(10.5 if metrics else 6.2, 3.9), dpi=144, layout="constrained")
    axes = figure.subplots(1, 2 if metrics else 1, squeeze=False)[0]
    losses = _even_windows(_points(history, "loss"))
    _draw_losses(axes[0], losses, _points(history, "eval_loss"))
    if metrics:
        _draw_metrics(axes[1], metrics)
    figure.savefig(target)


def _points(history: Sequence[dict[str, Any]], name: str) -> Points:
    logs = [log for log in history if name in log]
    return [log["step"] for log in logs], [log[name] for log in logs]


def _even_windows(losses: Points) -> Points:
    """Return the losses with short windows joined to the next.

    Each logged loss is a mean since the one before. The loss is logged with every checkpoint, too,
    so some windows are a step or two, whose noise would stand out.
    """
    starts = [0, *losses[0][:-1]]
    widths = [step - start for step, start in zip(losses[0], starts, strict=True)]
    usual = max(widths, default=1)
    steps: list[int] = []
    values: list[float] = []
    total, width = 0.0, 0
    for step, value, own_width in zip(*losses, widths, strict=True):
        total, width = total + value * own_width, width + own_width
        if width >= usual:
            steps.append(step)
            values.append(total / width)
            total, width = 0.0, 0
    return steps, values


def _draw_losses(axes: Any, train: Points, validation: Points) -> None:
    steps, losses = train
    many = len(steps) > _FEW
    axes.plot(
        *train,
        color=BLUE,
        alpha=0.3 if many else 1,
        linewidth=1.2 if many else 2,
        label="training" if not many else "training, as logged",
    )
    if many:
        axes.plot(steps, _smoothed(losses), color=BLUE, linewidth=2, label="training, smoothed")
    if validation[0]:
        axes.plot(*validation, color=ORANGE, linewidth=2, marker="o", label="validation")
    _dress(axes, "Loss")


def _draw_metrics(axes: Any, metrics: dict[str, Points]) -> None:
    for name, points in metrics.items():
        label, color = _METRICS[name]
        axes.plot(*points, color=color, linewidth=2, marker="o", label=label)
    steps, values = metrics.get("eval_accuracy") or next(iter(metrics.values()))
    axes.annotate(
        f"{values[-1]:.3f}",
        (steps[-1], values[-1]),
        xytext=(0, 9),
        textcoords="offset points",
        ha="center",
        color=INK,
        fontweight="bold",
    )
    axes.margins(x=0.08, y=0.25)
    _dress(axes, "On the validation rows")


def _dress(axes: Any, title: str) -> None:
    axes.set_title(title, loc="left", color=INK, fontweight="bold", fontsize=12)
    axes.set_xlabel("step", color=MUTED)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    axes.grid(axis="y", color=GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID)
    axes.tick_params(colors=MUTED, length=0)
    axes.legend(frameon=False, labelcolor=INK, fontsize=9)


def _smoothed(values: Sequence[float]) -> list[float]:
    """Return the mean around each value; centred, since one of the past alone would lag behind."""
    reach = max(1, len(values) // 12)
    return [
        statistics.fmean(values[max(0, index - reach) : index + reach + 1])
        for index in range(len(values))
    ]
