"""The layers of configuration, and the groups and options that they hold.

    package   nexa_hpc/_configs         what we ship; in a checkout, `configs/` beside the package
    site      $NEXA_HPC_SITE            what the cluster's staff say; may lock values
    user      ~/.config/nexa_hpc        (XDG_CONFIG_HOME)
    project   <root>/configs
    --config-dir FOLDER                 as many as there are

A layer holds groups as folders, an option of a group as a file in it, and a `config.yaml`. Of two
options of one name, that of the higher layer counts. Standard library alone.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nexa_hpc
from nexa_hpc.errors import UserError

GROUPS = ("scheduler", "cluster", "paths")
"""The groups of the site: one option of each holds for a whole run."""
SECTIONS = (*GROUPS, "retention")
OURS = {"scheduler": "local", "cluster": "generic", "paths": "default"}
"""What is chosen where no layer chooses."""
SITE_VARIABLE = "NEXA_HPC_SITE"
CONFIG_NAME = "config.yaml"
PACKAGE = "package"
SITE = "site"
PROJECT = "project"
_ENDING = ".yaml"


@dataclass(frozen=True)
class Layer:
    """One folder of configuration, and what it is called."""

    name: str
    folder: Path

    @property
    def config(self) -> Path:
        """Its `config.yaml`."""
        return self.folder / CONFIG_NAME

    def option(self, group: str, name: str) -> Path:
        """The file of an option."""
        return self.folder / group / f"{name}{_ENDING}"

    def options(self, group: str) -> list[str]:
        """Return the names of the options of `group` in this layer."""
        try:
            names = os.listdir(self.folder / group)
        except OSError:
            return []
        found = (name[: -len(_ENDING)] for name in names if name.endswith(_ENDING))
        return sorted(name for name in found if not name.startswith("."))

    def groups(self) -> list[str]:
        """Return the groups in this layer, those inside of others as `a/b`."""
        found = []
        for folder, below, _ in os.walk(self.folder):
            below[:] = sorted(name for name in below if name[:1] not in (".", "_"))
            found += [os.path.relpath(os.path.join(folder, name), self.folder) for name in below]
        return sorted(found)


def find_layers(root: Path, config_dirs: Sequence[Path] = ()) -> tuple[Layer, ...]:
    """Return the layers that exist for the project at `root`, the lowest first.

    Raises UserError for a `--config-dir`, or a site, that is no folder.
    """
    for folder in config_dirs:
        if not folder.is_dir():
            raise UserError(f"--config-dir {folder}: no such folder")
    site = os.environ.get(SITE_VARIABLE)
    if site and not Path(site).is_dir():
        raise UserError(
            f"{SITE_VARIABLE} is {site}: no such folder", hint=f"unset {SITE_VARIABLE}, or mend it"
        )
    found = [
        Layer(PACKAGE, package_folder()),
        *([Layer(SITE, Path(site).absolute())] if site else []),
        Layer("user", user_folder()),
        Layer(PROJECT, root / "configs"),
        *(Layer("--config-dir", Path.cwd() / folder) for folder in config_dirs),
    ]
    there = [layer for layer in found if _is_there(layer)]
    # Who works on nexa_hpc itself has the package's folder as the project's, too: the higher holds.
    later = {layer.folder.resolve(): layer for layer in there}
    return tuple(layer for layer in there if later[layer.folder.resolve()] is layer)


def _is_there(layer: Layer) -> bool:
    try:
        return layer.folder.is_dir()
    except PermissionError:
        # After `su` or in a container HOME may be somebody else's: no configuration of this user's.
        if layer.name == "user":
            return False
        raise


def package_folder() -> Path:
    """Return the folder of the configuration that we ship."""
    package = Path(nexa_hpc.__file__).parent
    packed = package / "_configs"
    return packed if packed.is_dir() else package.parent / "configs"


def user_folder() -> Path:
    """Return the folder of the user's own configuration."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "nexa_hpc"


def group_options(layers: Sequence[Layer], group: str) -> dict[str, Layer] | None:
    """Return option -> the layer that gives it; None where no layer has such a group."""
    if not any((layer.folder / group).is_dir() for layer in layers):
        return None
    names = {name: None for layer in layers for name in layer.options(group)}
    found = {name: find_option(layers, group, name) for name in names}
    return {name: option[0] for name, option in found.items() if option is not None}


def find_option(layers: Sequence[Layer], group: str, name: str) -> tuple[Layer, Path] | None:
    """Return the file of an option in the highest layer that has it, and that layer.

    One of ours that holds nothing hides none below it, where our folder is the project's as well.
    """
    there = [(layer, layer.option(group, name)) for layer in reversed(layers)]
    there = [(layer, file) for layer, file in there if file.is_file()]
    return next((f for f in there if not _is_our_blank(*f)), next(iter(there), None))


def _is_our_blank(layer: Layer, file: Path) -> bool:
    if layer.folder.resolve() != package_folder().resolve():
        return False
    lines = (line.strip() for line in file.read_text(encoding="utf-8").splitlines())
    return all(line in ("", "{}") or line.startswith("#") for line in lines)


def chosen_group(entry: Any) -> str | None:
    """Return the group that an entry of a `defaults:` list chooses an option of."""
    if not isinstance(entry, dict) or len(entry) != 1:
        return None
    return str(next(iter(entry))).removeprefix("override ").strip().lstrip("/")
