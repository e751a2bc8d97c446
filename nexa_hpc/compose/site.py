"""What the layers say of scheduler, cluster, paths and retention: composed once, then remembered.

The answer is kept as JSON in the user's cache, under the digest of all files that it was made of:
a later command reads these few small files and no YAML, and where no layer but our own has any,
none at all. Overrides, and what a pipeline says itself, are laid over it each time. Standard
library alone, as long as the answer is known.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nexa_hpc
from nexa_hpc.compose.layers import GROUPS, OURS, PACKAGE, SECTIONS, Layer, find_layers
from nexa_hpc.compose.origins import Origin, Origins, Place, find, lay_over, nearest_origin
from nexa_hpc.core import atomic
from nexa_hpc.core.access import PRIVATE
from nexa_hpc.core.paths import user_cache
from nexa_hpc.core.quoting import shown
from nexa_hpc.errors import UserError

FORMAT = 1
_STRICTER: dict[str, Callable[[Any, Any], bool]] = {
    "max_running": lambda value, locked: value <= locked,
    "max_submit": lambda value, locked: value <= locked,
    "poll_interval_s": lambda value, locked: value >= locked,
    "min_poll_interval_s": lambda value, locked: value >= locked,
}
"""What may be set to another value than the locked one: to one that asks for less."""
_VARIABLE = re.compile(rb"oc\.env:\s*(\w+)")


@dataclass(frozen=True)
class SiteConfig:
    """Scheduler, cluster, paths and retention, composed, and where each value is from."""

    scheduler: dict[str, Any] = field(default_factory=dict)
    cluster: dict[str, Any] = field(default_factory=dict)
    paths: dict[str, Any] = field(default_factory=dict)
    retention: dict[str, Any] = field(default_factory=dict)
    choices: dict[str, str] = field(default_factory=dict)
    """Group -> the option that holds."""
    origins: Origins = field(default_factory=dict)
    chosen_by: Origins = field(default_factory=dict)
    """Group -> who has chosen, if anybody has."""
    locks: dict[str, Any] = field(default_factory=dict)
    again: Callable[[str], SiteConfig] | None = None

    def sections(self) -> dict[str, dict[str, Any]]:
        """Return the sections by name."""
        return {name: getattr(self, name) for name in SECTIONS}

    @property
    def default_scheduler(self) -> str | None:
        """Where steps run that declare nothing; None where nobody has chosen."""
        choice = self.choices.get("scheduler")
        if choice is None or "scheduler" not in self.chosen_by:
            return None
        return choice if choice in ("local", "slurm", "k8s") else "slurm"

    def on(self, cluster: str) -> SiteConfig:
        """Return the same on the Slurm cluster of this ClusterName, unless one was chosen."""
        if "cluster" in self.chosen_by or self.again is None:
            return self
        return self.again(cluster)

    def refuse_locked(self, path: str, value: Any, origin: Origin, root: Path) -> None:
        """Raise UserError where the site has locked `path` to another value."""
        lock = self.locks.get(path)
        if lock is None or (lock["is_set"] and _allowed(path, value, lock["value"])):
            return
        place = Origin(*lock["origin"]).shown(root)
        kept = f"at {shown(str(lock['value']))}" if lock["is_set"] else "at its default"
        raise UserError(
            f"{path} is locked {kept} by the {place}; {origin.shown(root)} says "
            f"{shown(str(value))}",
            hint="leave it away, or ask the site's staff",
        )


def _allowed(path: str, value: Any, locked: Any) -> bool:
    if value == locked:
        return True
    stricter = _STRICTER.get(path.rpartition(".")[2])
    numbers = (int, float)
    comparable = isinstance(value, numbers) and isinstance(locked, numbers)
    return stricter is not None and comparable and stricter(value, locked)


def site_config(
    root: Path,
    choices: Mapping[str, str] | None = None,
    config_dirs: Sequence[Path] = (),
    *,
    cluster: str | None = None,
    groups: Sequence[str] = GROUPS,
    above: Mapping[str, Origin] | None = None,
    over: Callable[[dict[str, Any], Origins], dict[str, Any]] | None = None,
) -> SiteConfig:
    """Return what holds in the project at `root`.

    `choices` stand above those of the layers, and `above` says whose they are; `cluster` is
    Slurm's ClusterName; `over` lays further values over the sections. Raises UserError, SpecError.
    """
    layers = find_layers(root, config_dirs)
    files = _files(layers, groups)
    chosen = {group: option for group, option in (choices or {}).items() if group in groups}
    made = _empty(groups) if not chosen and _only_ours(files) else None
    if made is None:
        made = _remembered(layers, files, groups, chosen, cluster)
    origins = {path: Origin(*told) for path, told in made["origins"].items()}
    sections = made["sections"]
    if over is not None:
        sections = over(sections, origins)
    chosen_by = {group: Origin(*told) for group, told in made["chosen_by"].items()}
    config = SiteConfig(
        **sections,
        choices=made["choices"],
        origins=origins,
        chosen_by={**chosen_by, **{g: o for g, o in (above or {}).items() if g in chosen}},
        locks=made["locks"],
        again=lambda name: site_config(
            root, choices, config_dirs, cluster=name, groups=groups, above=above, over=over
        ),
    )
    return _held(config, root)


def _held(config: SiteConfig, root: Path) -> SiteConfig:
    """Return `config` with what the site has locked; raises UserError for another value there."""
    sections: dict[str, Any] = config.sections()
    origins = dict(config.origins)
    for path, lock in config.locks.items():
        is_set, value = find(sections, path)
        if is_set and not (value is None and not lock["is_set"]):
            origin = nearest_origin(origins, path) or Origin("?")
            config.refuse_locked(path, value, origin, root)
        elif lock["is_set"]:
            # An option of a higher layer has taken the place of the site's, and is silent on it.
            given: Any = lock["value"]
            for part in reversed(path.split(".")):
                given = {part: given}
            sections = {name: dict(inner) for name, inner in sections.items()}
            lay_over(sections, given, _always(Origin(*lock["origin"])), origins)
    return replace(config, **sections, origins=origins)


def _always(origin: Origin) -> Callable[[Place], Origin]:
    return lambda place: origin


def _empty(groups: Sequence[str]) -> dict[str, Any]:
    """Return what holds where nobody says anything; a test holds it against what we ship."""
    sections = [*groups, *(["retention"] if "paths" in groups else [])]
    return {
        "sections": {section: {} for section in sections},
        "choices": {group: OURS[group] for group in groups},
        "chosen_by": {},
        "origins": {},
        "locks": {},
    }


def _files(layers: Sequence[Layer], groups: Sequence[str]) -> list[tuple[Layer, Path]]:
    """Return the files that the answer depends on."""
    found = []
    for layer in layers:
        found += [(layer, layer.config)] if layer.config.is_file() else []
        for group in groups:
            found += [(layer, layer.option(group, name)) for name in layer.options(group)]
    return found


def _only_ours(files: Sequence[tuple[Layer, Path]]) -> bool:
    return all(layer.name == PACKAGE for layer, _ in files)


def _remembered(
    layers: Sequence[Layer],
    files: Sequence[tuple[Layer, Path]],
    groups: Sequence[str],
    choices: Mapping[str, str],
    cluster: str | None,
) -> dict[str, Any]:
    # Another state of this very code may answer otherwise.
    code = [file.stat().st_mtime_ns for file in Path(__file__).parent.glob("layer*.py")]
    asked = [FORMAT, nexa_hpc.__version__, sorted(code), list(groups), dict(choices), cluster]
    file = user_cache() / "config" / f"{_digest(asked, layers, files)}.json"
    try:
        known: dict[str, Any] = json.loads(file.read_bytes())
        return known
    except (OSError, ValueError):
        pass
    # Imported here: YAML, and where an option is composed itself, Hydra.
    from nexa_hpc.compose.layering import lay

    made = lay(layers, groups, choices, cluster)
    text = json.dumps(made)
    try:
        atomic.make_folder(file.parent, PRIVATE)
        atomic.write_file(file, text)
    except OSError:
        pass  # It only saves time.
    again: dict[str, Any] = json.loads(text)
    return again


def _digest(asked: Any, layers: Sequence[Layer], files: Sequence[tuple[Layer, Path]]) -> str:
    digest = hashlib.sha256(json.dumps(asked).encode())
    variables: set[bytes] = set()
    for layer in layers:
        digest.update(f"\0{layer.name}\0{layer.folder}".encode())
    for _, file in files:
        try:
            content = file.read_bytes()
        except OSError:
            content = b""
        digest.update(f"\0{file}\0{len(content)}\0".encode() + content)
        variables.update(_VARIABLE.findall(content))
    for variable in sorted(variables):
        name = variable.decode()
        digest.update(f"\0{name}={os.environ.get(name)}".encode())
    return digest.hexdigest()
