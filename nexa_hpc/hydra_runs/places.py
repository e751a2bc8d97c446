"""What is kept of a multirun: a project of its own, in its sweep folder.

    <sweep dir>/.nexa_slurm/             the owner's alone (0700)
        .nexa_state/, artifacts/.store/  as in any project (`core.paths`); a point's result is an
                                         artifact that holds `return.pickle`
        calls/<token>/call.pickle        the app, as the jobs of one batch run it
        calls/<token>/<n>.pickle         the config of point n, composed at submission
        <work of an attempt>/failed.pickle   the JobReturn of an attempt that failed

So `nexa-hpc --project <sweep dir>/.nexa_slurm status` shows a multirun like any run. Standard
library alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nexa_hpc.core import atomic
from nexa_hpc.core.access import PRIVATE
from nexa_hpc.core.paths import ProjectPaths
from nexa_hpc.core.sharing import prepare, require_own

NAME = ".nexa_slurm"
RETURN, FAILED = "return.pickle", "failed.pickle"


@dataclass(frozen=True)
class Place:
    """The folder `.nexa_slurm` of a sweep."""

    sweep: Path
    """Absolute."""

    @property
    def root(self) -> Path:
        """The root of the multirun's project."""
        return self.sweep / NAME

    @property
    def paths(self) -> ProjectPaths:
        """Every path below it that all projects have."""
        return ProjectPaths.at(self.root)

    def make(self) -> None:
        """Create what is missing, for the owner alone; raises UserError when it is not ours."""
        require_own(self.root, "the multirun's folder")
        atomic.make_folder(self.root, PRIVATE)
        prepare(self.paths, None)


@dataclass(frozen=True)
class Calls:
    """What the jobs of one batch are called with."""

    folder: Path

    @classmethod
    def named(cls, root: Path, token: str) -> Calls:
        """Return those of the batch `token` of the multirun at `root`."""
        return cls(root / "calls" / token)

    @property
    def call(self) -> Path:
        """The app."""
        return self.folder / "call.pickle"

    def config(self, number: int) -> Path:
        """The config of point `number`."""
        return self.folder / f"{number}.pickle"
