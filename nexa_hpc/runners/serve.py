"""`runners.serve`: known by name, and refused at planning until servers can be steps."""

from __future__ import annotations

from nexa_hpc.core.handlers import StepView, Task
from nexa_hpc.errors import UnsupportedError

_REFUSAL = "this version does not serve models as a step: nexa-hpc serve start"


class ServeHandler:
    """The handler behind `runners.serve`."""

    effect = True

    def validate(self, step: StepView) -> None:
        """Raise UnsupportedError."""
        raise UnsupportedError(f"{step.uses}: {_REFUSAL}")

    def run(self, task: Task) -> None:
        """Raise UnsupportedError; planning has done so before."""
        raise UnsupportedError(f"{task.uses}: {_REFUSAL}")


handler = ServeHandler()
