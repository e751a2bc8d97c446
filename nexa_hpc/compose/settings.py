"""The settings of a project: `nexa.yaml`, below it what the layers say of `paths` and `retention`.

    layers < nexa.yaml < a pipeline file's own sections < overrides

Standard library alone, where no YAML is to be read.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from nexa_hpc.compose.origins import Origin
from nexa_hpc.compose.site import SiteConfig, site_config
from nexa_hpc.core.paths import SETTINGS_NAME
from nexa_hpc.core.settings import Retention, Settings, given_settings, wrong_setting
from nexa_hpc.errors import Problem, SpecError

_ABOVE = ("pipeline", "override")


def project_settings(root: Path, config: SiteConfig | None = None) -> Settings:
    """Return the settings of the project at `root`; `config` is that of a run, if there is one.

    Raises SpecError with every problem found, UserError for what the site has locked.
    """
    config = config if config is not None else site_config(root, groups=("paths",))
    below, above = _parted(config)
    own = given_settings(root)
    sections = [{**below[name], **own[name], **above[name]} for name in ("paths", "retention")]
    _refuse_locked(config, root, own)
    return Settings(**sections[0], retention=Retention(**sections[1]))


def _parted(config: SiteConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return section -> values of the layers, and those of who stands above `nexa.yaml`."""
    below: dict[str, Any] = {"paths": {}, "retention": {}}
    above: dict[str, Any] = {"paths": {}, "retention": {}}
    problems = []
    known = {
        "paths": {f.name for f in dataclasses.fields(Settings)} - {"retention"},
        "retention": {f.name for f in dataclasses.fields(Retention)},
    }
    for section, names in known.items():
        for name, value in getattr(config, section).items():
            origin = config.origins.get(f"{section}.{name}", Origin("?"))
            wrong = wrong_setting(section, name, value) if value is not None else None
            if wrong is not None:
                problems.append(Problem(wrong, origin.file, origin.line, key=f"{section}.{name}"))
            elif value is not None and name in names:
                (above if origin.layer in _ABOVE else below)[section][name] = value
    if problems:
        raise SpecError(problems)
    return below, above


def _refuse_locked(config: SiteConfig, root: Path, own: dict[str, Any]) -> None:
    origin = Origin("project", str(root / SETTINGS_NAME))
    for section, values in own.items():
        for name, value in values.items():
            config.refuse_locked(f"{section}.{name}", value, origin, root)
