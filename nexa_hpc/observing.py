"""What is told of a run while it is driven, to whoever shows it. Called by `advance`."""

from __future__ import annotations

from nexa_hpc.core.handlers import Progress
from nexa_hpc.core.instances import Instance
from nexa_hpc.core.states import Standing
from nexa_hpc.handover import HandedOver


class Observer:
    """Is told what happens, as it happens; shows nothing itself: what does derives from it."""

    def started(self, instance: Instance, attempt: int) -> None:
        """An attempt begins."""

    def output(self, instance: Instance, text: bytes) -> None:
        """A running step printed something."""

    def progressed(self, instance: Instance, progress: Progress) -> None:
        """A running step told how far it is."""

    def settled(self, instance: Instance, standing: Standing) -> None:
        """Nothing more happens to an instance in this round."""

    def waits(self, instance: Instance, standing: Standing) -> None:
        """An instance is in other hands."""

    def handed_over(self, done: HandedOver) -> None:
        """Something was submitted to Slurm, or could not be."""
