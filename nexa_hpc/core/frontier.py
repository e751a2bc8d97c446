"""Which instances may be looked at now: those that have not settled, and all of whose parents have.

Kept up to date as instances settle, so that driving a run of n steps is linear in n and not n
passes over n. Called by `advance`. Standard library alone.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping

from nexa_hpc.core.instances import Instance


class Frontier:
    """The open instances of one run, in graph order."""

    def __init__(self, instances: Mapping[str, Instance]) -> None:
        self._steps = list(instances)
        self._number = {step: number for number, step in enumerate(self._steps)}
        self._waiting = {step: len(i.parents) for step, i in instances.items() if i.parents}
        self._children: dict[str, list[str]] = {}
        for step in self._waiting:
            for parent in instances[step].parents:
                self._children.setdefault(parent, []).append(step)
        self._open = [n for n, step in enumerate(self._steps) if step not in self._waiting]
        self._settled: set[int] = set()

    @property
    def is_empty(self) -> bool:
        """Whether every instance has settled."""
        return len(self._settled) == len(self._steps)

    def open(self) -> Iterator[str]:
        """Yield each open step once, in graph order; those that open meanwhile come in this pass.

        What is not settled until the pass ends is open again in the next one.
        """
        passed = []
        try:
            while self._open:
                number = heapq.heappop(self._open)
                if self._is_open(number):
                    passed.append(number)
                    yield self._steps[number]
        finally:
            for number in passed:
                if self._is_open(number):
                    heapq.heappush(self._open, number)

    def _is_open(self, number: int) -> bool:
        return number not in self._settled and not self._waiting.get(self._steps[number])

    def settle(self, step: str) -> None:
        """Note that `step`, an open one, has settled."""
        self._settled.add(self._number[step])
        for child in self._children.get(step, ()):
            self._waiting[child] -= 1
            if self._is_open(self._number[child]):
                heapq.heappush(self._open, self._number[child])

    def reopen(self, step: str) -> None:
        """Note that `step`, which had settled, is to be looked at again, and before what is below.

        What of that has settled stays so.
        """
        self._settled.remove(self._number[step])
        heapq.heappush(self._open, self._number[step])
        for child in self._children.get(step, ()):
            self._waiting[child] += 1
