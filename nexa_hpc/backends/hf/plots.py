"""The pictures of an evaluation: confusion matrix, calibration, distributions of losses and scores.

Called by evaluation. Colours are those of `curves.py`.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from nexa_hpc.backends.hf.curves import BLUE, GRID, INK, MUTED, ORANGE
from nexa_hpc.backends.hf.scoring import Calibration

_DPI = 144
_LABELS_SHOWN = 30
"""With more classes than this, counts and names would lie on top of each other."""
_LONGEST_LABEL = 18


def draw_confusion(matrix: Any, labels: Sequence[str], target: Path) -> None:
    """Draw how often each true label was predicted as each label; colour is the part of its row."""
    side = min(12.0, 3.2 + 0.55 * len(labels))
    figure = Figure(figsize=(side + 0.6, side), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    parts = matrix / matrix.sum(axis=1, keepdims=True).clip(min=1)
    axes.imshow(parts, cmap="Blues", vmin=0, vmax=1)
    if len(labels) <= _LABELS_SHOWN:
        _name_cells(axes, matrix, parts, [_shortened(label) for label in labels])
    else:
        axes.set(xticks=[], yticks=[])
    axes.set_xlabel("predicted", color=MUTED)
    axes.set_ylabel("true", color=MUTED)
    axes.spines[:].set_visible(False)
    axes.tick_params(colors=INK, length=0)
    figure.savefig(target)


def _name_cells(axes: Any, matrix: Any, parts: Any, labels: Sequence[str]) -> None:
    positions = range(len(labels))
    tilt = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if len(labels) > 3 else {}
    axes.set_xticks(positions, labels, **tilt)
    axes.set_yticks(positions, labels)
    few = len(labels) <= 6
    for true in positions:
        for predicted in positions:
            count, part = matrix[true, predicted], parts[true, predicted]
            axes.text(
                predicted,
                true,
                f"{count}\n{part:.0%}" if few and count else f"{count}",
                ha="center",
                va="center",
                fontsize=11 if few else 8,
                color="white" if part > 0.55 else INK if count else MUTED,
            )


def draw_calibration(calibration: Calibration, target: Path) -> None:
    """Draw accuracy against stated confidence; a point's area is its number of rows."""
    figure = Figure(figsize=(4.6, 4.3), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    most = max(calibration.counts)
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 4)))
    axes.plot(calibration.confidence, calibration.accuracy, color=BLUE, linewidth=1.5, alpha=0.3)
    axes.scatter(
        calibration.confidence,
        calibration.accuracy,
        s=[25 + 275 * count / most for count in calibration.counts],
        color=BLUE,
        edgecolor="white",
        zorder=3,
    )
    lowest = min(*calibration.confidence, *calibration.accuracy)
    low = max(0.0, lowest - 0.08)
    axes.set(xlim=(low, 1.03), ylim=(low, 1.05))
    axes.set_xlabel("confidence of the model", color=MUTED)
    axes.set_ylabel("part that is right", color=MUTED)
    axes.text(0.97, 0.05, "bigger: more rows", transform=axes.transAxes, ha="right", color=MUTED)
    _dress(axes, "both")
    figure.savefig(target)


def draw_losses(losses: Sequence[float], target: Path) -> None:
    """Draw how the mean loss for each token is distributed over the texts."""
    bins = min(40, max(8, len(losses) // 8))
    _draw_distribution(losses, bins, ("loss for each token", "texts"), target)


def draw_scores(scores: Sequence[float], name: str, target: Path) -> None:
    """Draw how a figure between 0 and 1 is distributed over the answers."""
    _draw_distribution(scores, [part / 20 for part in range(21)], (name, "answers"), target)


def _draw_distribution(
    values: Sequence[float], bins: int | list[float], names: tuple[str, str], target: Path
) -> None:
    figure = Figure(figsize=(8.2, 3.6), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    axes.hist(values, bins=bins, color=BLUE, alpha=0.85, rwidth=0.92)
    axes.margins(y=0.2)
    median = statistics.median(values)
    axes.axvline(median, color=ORANGE, linewidth=2)
    axes.annotate(
        f"median {median:.2f}",
        (median, 0.97),
        xycoords=("data", "axes fraction"),
        xytext=(7, 0),
        textcoords="offset points",
        va="top",
        color=ORANGE,
        fontweight="bold",
    )
    axes.set_xlabel(names[0], color=MUTED)
    axes.set_ylabel(names[1], color=MUTED)
    _dress(axes, "y")
    figure.savefig(target)


def _dress(axes: Any, grid: str) -> None:
    axes.grid(axis=grid, color=GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID)
    axes.tick_params(colors=MUTED, length=0)


def _shortened(label: str) -> str:
    return label if len(label) <= _LONGEST_LABEL else label[: _LONGEST_LABEL - 1] + "…"
