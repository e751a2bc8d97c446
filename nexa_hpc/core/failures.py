"""A failure as it is recorded and as it is printed.

Called by the worker. Standard library alone.
"""

from __future__ import annotations

import sys
import traceback

from nexa_hpc.core.redaction import Redactor
from nexa_hpc.core.room import no_room
from nexa_hpc.core.states import Reason
from nexa_hpc.errors import NexaError, StepError

_MESSAGE_CHARACTERS = 600


def explain(error: BaseException, redactor: Redactor) -> tuple[Reason, str]:
    """Return the reason and the words under which `error` is recorded, without secrets."""
    if isinstance(error, MemoryError):
        return Reason.OUT_OF_MEMORY, "MemoryError: the process ran out of memory"
    error = no_room(error) or error
    reason = Reason(error.reason) if isinstance(error, StepError) else Reason.EXCEPTION
    text = str(error) if isinstance(error, NexaError) else f"{type(error).__name__}: {error}"
    hint = getattr(error, "hint", None)
    # Redacted before it is cut: a part of a secret is not found any more.
    return reason, redactor.text(f"{text} ({hint})" if hint else text)[:_MESSAGE_CHARACTERS]


def print_failure(error: BaseException, message: str) -> None:
    """Print `error`: in our words where it was raised on purpose, else with its traceback."""
    if isinstance(error, NexaError):
        print(f"error: {message}", file=sys.stderr)
    else:
        traceback.print_exception(error, file=sys.stderr)
