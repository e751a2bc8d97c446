"""Names in the model registry, and references into it: `name@3`, `name@production`, `name@latest`.

Pure: nothing here looks at the disk. Called by the registry, its handlers, `in: models:…` and the
command line. Standard library alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from nexa_hpc.errors import RegistryError

PREFIX = "models:"
LATEST = "latest"
REGISTERED = "registered"
"""In a promote step: the version that the same pipeline registered."""

_NAME = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,64}")


def name_problem(name: object) -> str | None:
    """Return what is wrong with `name` as a model's name, or None."""
    if isinstance(name, str) and _NAME.fullmatch(name):
        return None
    return f"{name!r} is not a name: 1 to 64 of A-Z a-z 0-9 . _ - and no dot in front"


def tag_problem(tag: object) -> str | None:
    """Return what is wrong with `tag` as a tag's name, or None: it must not read as a version."""
    if isinstance(tag, str) and (tag.isdigit() or tag in (LATEST, REGISTERED)):
        return f"'{tag}' cannot be a tag: it says which version, as in name@{tag}"
    return name_problem(tag)


def version_problem(version: object) -> str | None:
    """Return what is wrong with `version`, which may be a number or `latest`, or None."""
    if version == LATEST or version_number(version) is not None:
        return None
    return f"{version!r} is not a version: a number from 1, or {LATEST}"


def version_number(version: object) -> int | None:
    """Return the number that `version` (3 or "3") says, or None when it says none."""
    if isinstance(version, str) and re.fullmatch(r"[0-9]{1,9}", version):
        version = int(version)
    if isinstance(version, int) and not isinstance(version, bool) and version >= 1:
        return version
    return None


def check(problem: str | None) -> None:
    """Raise RegistryError when there is a `problem`."""
    if problem is not None:
        raise RegistryError(problem)


@dataclass(frozen=True)
class Reference:
    """`model@selector`; the selector is a version's number, `latest` or a tag."""

    model: str
    selector: str

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Return the reference that `text` spells, with or without `models:` in front.

        Raises RegistryError when `text` is no reference; whether its names exist is not looked at.
        """
        model, at, selector = text.removeprefix(PREFIX).partition("@")
        check(name_problem(model))
        if not at or not selector:
            raise RegistryError(
                f"'{text}' does not say which version of {model}",
                hint=f"write {model}@latest, {model}@3 or {model}@production",
            )
        if version_problem(selector) is not None:
            check(tag_problem(selector))
        return cls(model, selector)

    @property
    def tag(self) -> str | None:
        """The tag it names, or None where it names a version."""
        return self.selector if version_problem(self.selector) is not None else None

    def __str__(self) -> str:
        return f"{self.model}@{self.selector}"
