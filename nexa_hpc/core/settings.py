"""The project's own settings, in `nexa.yaml` at its root; all of them optional.

    paths:
      state: .nexa_state              history and work
      store: artifacts/.store         where results are kept
      registry: artifacts/.registry   versions and tags of models
      work: .nexa_state/work          scratch of running steps
      envs: ~/.local/share/nexa_hpc/envs   environments by name; for all nodes to see
      hub: null                       models and datasets that `fetch` brings; for all nodes to see
      scratch: null                   for pipelines to refer to: ${paths.scratch}
      group: null                     the Unix group that shares results (`core/sharing.py`)
      hash_limit_gb: 50               inputs larger than this are not read to compute a key
      allow_absolute_out: false       whether `out` may be an absolute path
    retention:                        for how many days `artifacts gc` keeps
      runs_days: 30                   what a run asks for
      artifacts_days: 30              what an `out` link points at
      failed_days: 14                 the work folders of attempts that did not succeed
      trash_days: 1                   what it has taken away

The environment variable NEXA_HPC_STATE takes the place of `state`, for a user in another one's
project. An empty file marks a project root and changes nothing. Standard library alone, as long as
there is no file: `status` and `logs` read settings, too.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nexa_hpc.core.paths import SETTINGS_NAME, ProjectPaths
from nexa_hpc.core.quoting import shown
from nexa_hpc.errors import Problem, SpecError, nearest

if TYPE_CHECKING:
    from nexa_hpc.core.document import Document

STATE_VARIABLE = "NEXA_HPC_STATE"
_PLACES = ("state", "store", "registry", "work", "envs", "hub")


@dataclass(frozen=True)
class Retention:
    """What `nexa.yaml` says below `retention`: for how long `artifacts gc` keeps what."""

    runs_days: float = 30
    artifacts_days: float = 30
    failed_days: float = 14
    trash_days: float = 1


@dataclass(frozen=True)
class Settings:
    """What `nexa.yaml` says: the fields below `paths`, None where the default of `ProjectPaths`
    holds; and `retention`.
    """

    state: str | None = None
    store: str | None = None
    registry: str | None = None
    work: str | None = None
    envs: str | None = None
    hub: str | None = None
    scratch: str | None = None
    """For pipelines that refer to `${paths.scratch}`; nothing of ours lies there."""
    group: str | None = None
    hash_limit_gb: float = 50
    allow_absolute_out: bool = False
    retention: Retention = Retention()

    def project_paths(self, root: Path) -> ProjectPaths:
        """Return the paths of the project at `root` under these settings."""
        places = {name: getattr(self, name) for name in _PLACES}
        places["state"] = os.environ.get(STATE_VARIABLE) or self.state
        return ProjectPaths.at(root, **{name: text for name, text in places.items() if text})


def read_settings(root: Path) -> Settings:
    """Return the settings in the project's own `nexa.yaml`; raises SpecError with every problem.

    `compose.settings` has those of the site and the user below them.
    """
    own = given_settings(root)
    return Settings(**own["paths"], retention=Retention(**own["retention"]))


def given_settings(root: Path) -> dict[str, dict[str, Any]]:
    """Return section -> what `nexa.yaml` gives; raises SpecError with every problem found."""
    nothing: dict[str, dict[str, Any]] = {"paths": {}, "retention": {}}
    file = root / SETTINGS_NAME
    if not file.exists():
        return nothing
    # Imported only here: YAML costs more than all the rest of `status`.
    from nexa_hpc.core.document import parse_document, read_text

    text = read_text(file)
    if all(line.strip()[:1] in (b"", b"#") for line in text.splitlines()):
        return nothing
    return _given(parse_document(text, str(file)))


def wrong_setting(section: str, name: str, value: Any) -> str | None:
    """Return what is wrong with `value` as the setting `name` of a section, or None.

    Other names may stand in `paths`, for pipelines to refer to.
    """
    form = Retention if section == "retention" else Settings
    known = [field.name for field in dataclasses.fields(form) if field.name != "retention"]
    if name in known:
        return _wrong(name, value)
    if section == "paths":
        return None
    return f"unknown key '{shown(name)}'{nearest(name, known)} (allowed: {', '.join(known)})"


def _given(document: Document) -> dict[str, dict[str, Any]]:
    problems = _unknown(document, (), document.value, ["paths", "retention"])
    retention = _section(document, "retention", Retention, problems)
    places = _section(document, "paths", Settings, problems)
    if problems:
        raise SpecError(problems)
    return {"paths": places, "retention": retention}


def _section(
    document: Document, section: str, form: type[Any], problems: list[Problem]
) -> dict[str, Any]:
    """Return what `document` gives of the fields of `form`, adding what is wrong to `problems`."""
    fields = document.value.get(section)
    if fields is not None and not isinstance(fields, Mapping):
        problems.append(_problem(document, (section,), "expected a mapping"))
    given: Mapping[str, Any] = fields if isinstance(fields, Mapping) else {}
    known = [field.name for field in dataclasses.fields(form) if field.name != "retention"]
    problems += _unknown(document, (section,), given, known)
    for name in known:
        wrong = _wrong(name, given[name]) if given.get(name) is not None else None
        if wrong is not None:
            problems.append(_problem(document, (section, name), wrong))
    return {name: value for name, value in given.items() if value is not None}


def _wrong(name: str, value: Any) -> str | None:
    """Return what is wrong with `value` as the setting `name`, or None."""
    if name.endswith("_days"):
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return None if is_number and value >= 0 else "expected a number of days, 0 or more"
    if name == "allow_absolute_out":
        return None if isinstance(value, bool) else "expected true or false"
    if name == "hash_limit_gb":
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return None if is_number and value > 0 else "expected a number of gigabytes above 0"
    is_text = isinstance(value, str) and value.isprintable() and value.strip()
    return None if is_text else "expected text"


def _unknown(
    document: Document, place: tuple[str, ...], given: Mapping[str, Any], known: list[str]
) -> list[Problem]:
    return [
        _problem(
            document,
            (*place, key),
            f"unknown key '{shown(key)}'{nearest(key, known)} (allowed: {', '.join(known)})",
        )
        for key in given
        if key not in known
    ]


def _problem(document: Document, place: tuple[str, ...], message: str) -> Problem:
    line = document.line_of(place)
    return Problem(message, file=document.name, line=line, key=shown(".".join(place)))
