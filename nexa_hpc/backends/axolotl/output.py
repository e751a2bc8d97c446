"""What a running axolotl prints: passed on without its progress bars, and read for the progress.

transformers prints its figures as Python dicts, and draws a bar without a name that counts the
steps. Called by the step. Standard library alone.
"""

from __future__ import annotations

import ast
import codecs
import re
from collections.abc import Mapping
from typing import Any

from nexa_hpc.core.handlers import Task

_BAR = re.compile(r"(?P<name>.*?)\s*\d+%\|[^|]*\|\s*(?P<done>[\d.]+\w?)/(?P<total>[\d.]+\w?) \[")
_ENDS = re.compile(r"[\r\n]")
_SHOWN = ("loss", "learning_rate", "eval_loss", "grad_norm")
_BEGINS = "Starting trainer"


class Reader:
    """Reads the output of one training, piece by piece."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""
        self._latest: dict[str, float] = {}
        self._begun = False
        self.step = 0
        self.total: int | None = None
        """Of steps; None until the training has begun."""
        self.history: list[dict[str, Any]] = []
        """The figures so far, as transformers keeps them; those of this attempt alone."""

    def feed(self, piece: bytes) -> None:
        """Take what was printed; `b""` at the end."""
        text = self._rest + self._decoder.decode(piece, final=not piece)
        *lines, self._rest = _ENDS.split(text)
        if not piece:
            lines, self._rest = [*lines, self._rest], ""
        for line in lines:
            self._take(line)

    def _take(self, line: str) -> None:
        bar = _BAR.match(line)
        if bar is not None:
            self._take_bar(bar)
            # What is printed while a bar is drawn may stand behind it.
            line = line[line.rfind("]") + 1 :] if line.rstrip().endswith("}") else ""
        if _BEGINS in line:
            self._begun = True
        figures = _figures(line)
        if figures:
            self._take_figures(figures)
        if line.strip():
            print(line, flush=True)

    def _take_bar(self, bar: re.Match[str]) -> None:
        numbers = bar["done"], bar["total"]
        if not self._begun or bar["name"] or not all(map(str.isdigit, numbers)):
            return
        done, total = map(int, numbers)
        if self.total is None:
            self.total = total
        # A bar of an evaluation has no name either.
        if total == self.total and done >= self.step:
            self.step = done
            self._tell()

    def _take_figures(self, figures: Mapping[str, float]) -> None:
        self._latest |= {name: value for name, value in figures.items() if name in _SHOWN}
        if "loss" in figures or "eval_loss" in figures:
            self.history.append({**figures, "step": self.step})
        self._tell()

    def _tell(self) -> None:
        if self.total is not None:
            self._task.progress(self.step, self.total, metrics=self._latest)


def _figures(line: str) -> dict[str, float]:
    """Return the figures that a line holds as a dict; empty for every other line."""
    text = line.strip()
    if not (text.startswith("{") and text.endswith("}") and "'" in text):
        return {}
    try:
        found = ast.literal_eval(text)
        return {str(name): float(value) for name, value in found.items()}
    except (ValueError, SyntaxError, TypeError, AttributeError):
        return {}
