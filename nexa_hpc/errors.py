"""Every exception that nexa_hpc raises on purpose, with its exit code and its hint.

    NexaError                      exit 1
    ├── UserError                  exit 2   a mistake in a document, an argument or a path;
    │   │                                   nothing was written
    │   ├── SpecError                       all the problems of one document, reported together
    │   ├── UnsupportedError                asked for something that this version does not do
    │   ├── UnknownNameError                no such pipeline, run, step, model, version or tag
    │   └── RegistryError                   the model registry refuses
    ├── StepError                  exit 1   a step failed
    │   ├── CommandError                    a command exited with another code than 0
    │   ├── InputChangedError               an input is no longer what was planned
    │   ├── NoRoomError                     a disk or a quota is full, of bytes or of inodes
    │   └── BlockedError           exit 75  an upstream step has no result
    ├── ArtifactError              exit 3   an artifact is missing, damaged, or not ours to touch
    ├── StateError                 exit 3   a file under .nexa_state cannot be understood
    ├── SchedulerError             exit 4   Slurm does not answer, or refuses what it was asked
    └── Interrupted                exit 130 Ctrl-C, SIGTERM or `cancel`

The command line prints `error: …` and `hint: …` for all of these, at one place (`cli/main.py`);
anything else that reaches it is a bug, and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class NexaError(Exception):
    """Base of the tree: a message, what is wrong and where; and as hint the next command."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class UserError(NexaError):
    """The user can mend this; nothing was written."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a document: where it is, and what to write instead."""

    message: str
    file: str | None = None
    line: int | None = None
    step: str | None = None
    key: str | None = None

    def __str__(self) -> str:
        place = self.file or ""
        if self.line is not None:
            place += f":{self.line}"
        parts = [place] if place else []
        if self.step is not None:
            parts.append(f"step '{self.step}'")
        if self.key is not None:
            parts.append(self.key)
        return ": ".join([*parts, self.message])


class SpecError(UserError):
    """All the problems found in one pipeline document."""

    def __init__(self, problems: Sequence[Problem], *, hint: str | None = None) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in problems), hint=hint)


class UnsupportedError(UserError, NotImplementedError):
    """Understood, but not something that this version does."""


class UnknownNameError(UserError):
    """A pipeline, run, step, model, version or tag that does not exist."""


class RegistryError(UserError):
    """The model registry refuses: a bad name, an incomplete artifact, a tag in use."""


class StepError(NexaError):
    """A step failed; `reason` is one of the closed list in `core.states.Reason`."""

    reason = "exception"


class CommandError(StepError):
    """A command of a `runners.command` step exited with another code than 0."""


class InputChangedError(StepError):
    """An input differs from what was digested at planning; nothing is published."""

    reason = "input_changed"


class NoRoomError(StepError):
    """A filesystem has no bytes or no inodes left, or a quota is used up."""


class BlockedError(StepError):
    """An upstream step has no result, so this one cannot start (EX_TEMPFAIL)."""

    exit_code = 75


class ArtifactError(NexaError):
    """An artifact is missing, incomplete or damaged, or a folder in the way is not ours."""

    exit_code = 3


class StateError(NexaError):
    """A file under `.nexa_state` cannot be understood."""

    exit_code = 3


class SchedulerError(NexaError):
    """Slurm does not answer, or refuses what it was asked."""

    exit_code = 4


class Interrupted(NexaError):
    """Ctrl-C, SIGTERM, or `nexa-hpc pipeline cancel`."""

    exit_code = 130


def nearest(name: object, choices: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the closest of `choices`, or an empty string."""
    # Imported here: only mistakes need it, and every command imports this module.
    import difflib

    close = difflib.get_close_matches(str(name), sorted(choices), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""
