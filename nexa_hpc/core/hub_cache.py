"""What lies in `paths.hub`: models and datasets of a hub, fetched where there is a network.

    <paths.hub>/models--org--name/refs/main           the commit that a branch meant when fetched
    <paths.hub>/models--org--name/snapshots/<commit>/ its files; as huggingface_hub's own cache
    <paths.hub>/.nexa/models--org--name/<commit>.json that `fetch` has fetched all of it, and when
    <paths.hub>/.nexa/models--org--name/<ref>.begun   that it has begun to, and may not have ended

Jobs in Slurm find the models here and ask no hub. A handler may tell more of what it takes by

    hub_pin(step, name) -> (param, revision or None) | None
        which param pins the hub's name of an input, and to what; None for `<name>_revision`
    hub_names(step)
        yields (kind, name, revision or None) of what is beside its `input_params`

Called by planning and `fetch`. Standard library alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from nexa_hpc.core.handlers import Handler, StepView
from nexa_hpc.core.inputs import HUB_NAME, Reference
from nexa_hpc.core.reading import list_names

MAIN = "main"
COMMIT = re.compile("[0-9a-f]{40}")
_KINDS = ("model", "dataset")
_FILE_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".txt")


@dataclass(frozen=True, order=True)
class HubName:
    """A model or dataset on a hub, at a revision."""

    kind: str
    name: str
    revision: str
    """As declared: a branch, a tag or a commit; `main` where none is."""

    def __str__(self) -> str:
        at = "" if self.revision == MAIN else f" at {self.revision}"
        return f"{self.kind} {self.name}{at}"

    @property
    def folder(self) -> str:
        """How its folder in the cache is called."""
        return f"{self.kind}s--" + self.name.replace("/", "--")

    def record(self, hub: Path, commit: str) -> Path:
        """Return the file that says that `commit` was fetched whole."""
        return hub / ".nexa" / self.folder / f"{commit}.json"

    def begun(self, hub: Path) -> Path:
        """Return the file that is there while it is being fetched."""
        return hub / ".nexa" / self.folder / f"{self.revision.replace('/', '--')}.begun"

    def commit(self, hub: Path) -> str | None:
        """Return the commit that is whole in `hub` for this revision, or None."""
        place = hub / self.folder
        commit = self.revision
        if not (place / "snapshots" / commit).is_dir():
            try:
                text = (place / "refs" / self.revision).read_text(encoding="ascii")
            except (OSError, ValueError):
                return None
            commit = text.strip()
        if not commit or not list_names(place / "snapshots" / commit):
            return None
        # Others than `fetch` may have filled the cache; what it has begun it must have ended.
        known = self.record(hub, commit).is_file()
        begun = any(name.endswith(".begun") for name in list_names(self.begun(hub).parent))
        return commit if known or not begun else None


def names_of(handler: Handler, view: StepView, references: Iterable[Reference]) -> list[HubName]:
    """Return what a step takes from a hub: among its inputs, what its config file names, and what
    its handler knows of beside these.
    """
    beside = getattr(handler.target, "hub_names", lambda _: ())(view)
    found = [HubName(kind, name, revision or MAIN) for kind, name, revision in beside]
    kinds = {n: k for n, k in handler.input_params.items() if k in _KINDS}
    settings = handler.resolve(view) if kinds else {}
    told = {reference.name: reference for reference in references}
    for name, kind in kinds.items():
        text = _named(name, view, settings, told.get(name))
        if text is not None:
            found.append(HubName(kind, text, pin_of(handler, view, name)[1] or MAIN))
    return found


def pin_of(handler: Handler, view: StepView, name: str) -> tuple[str, str | None]:
    """Return which param pins the hub's name that the input `name` is, and to what revision."""
    pin = getattr(handler.target, "hub_pin", lambda *_: None)
    found: tuple[str, str | None] | None = pin(view, name)
    if found is not None:
        return found
    param = f"{name}_revision"
    revision = handler.resolve(view).get(param)
    return param, revision if isinstance(revision, str) else None


def is_hub_name(text: object, project: Path) -> bool:
    """Return whether `text` is a name on a hub: it reads as one, and nothing here is called so."""
    return (
        isinstance(text, str)
        and HUB_NAME.fullmatch(text) is not None
        and Path(text).suffix not in _FILE_SUFFIXES
        and not (project / text).exists()
    )


def _named(
    name: str, view: StepView, settings: Mapping[str, object], reference: Reference | None
) -> str | None:
    if reference is not None:
        return reference.text if reference.kind == "hub" else None
    text = settings.get(name)
    is_name = name not in view.inputs and is_hub_name(text, view.project)
    return str(text) if is_name else None


def missing(hub: Path, wanted: Mapping[str, Iterable[HubName]], file: str) -> Iterator[str]:
    """Yield in words which of the names are not in `hub`; `wanted` is by the steps that run."""
    for step, names in wanted.items():
        for name in names:
            if name.commit(hub) is None:
                yield (
                    f"step '{step}': {name} is not in {hub} (paths.hub), and its job asks no hub; "
                    f"on a machine with a network: nexa-hpc fetch {file}"
                )
