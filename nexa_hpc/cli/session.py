"""What every command starts from: the project root, found once, and its paths."""

from __future__ import annotations

import sys
from functools import cached_property
from pathlib import Path

from nexa_hpc.compose.settings import project_settings
from nexa_hpc.core.paths import ProjectPaths, find_root
from nexa_hpc.core.runs import Run, find_run
from nexa_hpc.core.settings import Settings


class Session:
    """The command line's context; made by `main`, passed by click."""

    def __init__(self, project: Path | None) -> None:
        self.project = project
        """`--project`, as given."""
        self._announced = False

    @cached_property
    def root(self) -> Path:
        """The project root, for commands that name no pipeline file."""
        return find_root(Path.cwd(), project=self.project)

    @cached_property
    def settings(self) -> Settings:
        """The project's settings."""
        return project_settings(self.root)

    @cached_property
    def paths(self) -> ProjectPaths:
        """The project's paths."""
        return self.settings.project_paths(self.root)

    def announce_root(self, root: Path | None = None) -> None:
        """Print the project root to standard error, once."""
        if not self._announced:
            print(f"project: {root or self.root}", file=sys.stderr)
            self._announced = True

    def find_run(self, name: str | None) -> Run:
        """Return the run that `name` means, announcing the root; see `core.runs.find_run`."""
        if name is not None and self.project is None and Path(name).is_file():
            self.root = find_root(Path.cwd(), Path(name))
        self.announce_root()
        return find_run(self.paths, name)
