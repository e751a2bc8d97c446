"""The site's configuration for one run: the layers, over them its pipeline file, then overrides.

Checked here, where it is known who has said what: a mistake is told with its file and line, or with
the override's text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nexa_hpc.compose.layers import GROUPS, chosen_group, find_layers, group_options
from nexa_hpc.compose.origins import Origin, Origins, find, forget, lay_over, leaves, nearest_origin
from nexa_hpc.compose.site import SiteConfig, site_config
from nexa_hpc.core.cluster import Cluster, SlurmPolicy
from nexa_hpc.core.document import Document
from nexa_hpc.core.overriding import Change, apply
from nexa_hpc.core.quoting import shown
from nexa_hpc.core.settings import wrong_setting
from nexa_hpc.core.spec_problems import translate
from nexa_hpc.core.spec_sections import Frozen
from nexa_hpc.errors import Problem, SpecError, UserError, nearest

_UNKNOWN = "unknown"


@dataclass(frozen=True)
class RunConfig:
    """What a run says over the layers."""

    root: Path
    config_dirs: tuple[Path, ...] = ()
    raw: Document | None = None
    """Its pipeline file."""
    chosen: Mapping[str, Change] = field(default_factory=dict)
    """Options of the site's groups, from the command line."""
    changes: tuple[Change, ...] = ()
    """Values in the site's sections, from the command line."""

    def compose(self, given: Mapping[str, Any]) -> SiteConfig:
        """Return the configuration, where the pipeline file gives these sections.

        Raises UserError, SpecError.
        """
        wanted, above = self._chosen_by_file()
        wanted |= {group: str(change.value) for group, change in self.chosen.items()}
        above |= {group: Origin("override", one.text) for group, one in self.chosen.items()}
        config = site_config(
            self.root,
            wanted,
            self.config_dirs,
            above=above,
            over=lambda sections, origins: self._laid_over(sections, origins, given),
        )
        if given or self.changes:
            check(config)
        return config

    def _chosen_by_file(self) -> tuple[dict[str, str], dict[str, Origin]]:
        """Return what the pipeline file's own `defaults:` choose of the site's groups, and where.

        Raises SpecError for what is no option.
        """
        document = self.raw
        entries = document.value.get("defaults") if document is not None else None
        wanted: dict[str, str] = {}
        above: dict[str, Origin] = {}
        if document is None or not isinstance(entries, list):
            return wanted, above
        layers = find_layers(self.root, self.config_dirs)
        for number, entry in enumerate(entries):
            group = chosen_group(entry)
            if group in GROUPS:
                option = next(iter(entry.values()))
                line = document.line_of(("defaults", number))
                options = group_options(layers, group) or {}
                if option not in options:
                    there = f"{nearest(option, options)} (there: {', '.join(options)})"
                    message = f"{group}: no such option '{shown(str(option))}'{there}"
                    raise SpecError([Problem(message, document.name, line, key="defaults")])
                wanted[group] = option
                above[group] = Origin("pipeline", document.name, line)
        return wanted, above

    def _laid_over(
        self, sections: dict[str, Any], origins: Origins, given: Mapping[str, Any]
    ) -> dict[str, Any]:
        document = self.raw
        values = {name: dict(inner) for name, inner in sections.items()}
        if document is not None:
            for section, inner in given.items():
                if not isinstance(inner, Mapping):
                    line = document.line_of((section,))
                    raise SpecError(
                        [Problem("expected a mapping", document.name, line, key=section)]
                    )
            line_of = document.line_of
            name = document.name
            lay_over(values, given, lambda at: Origin("pipeline", name, line_of(at)), origins)
        for change in self.changes:
            values = _changed(values, change, origins)
        return values


def _changed(values: dict[str, Any], change: Change, origins: Origins) -> dict[str, Any]:
    if change.path in ("paths.state", "paths.registry"):
        raise change.refused(
            "`status` and `models` would not find it again",
            hint=f"set it in nexa.yaml{', or in NEXA_HPC_STATE' if 'state' in change.path else ''}",
        )
    kind = "force" if change.kind == "set" else change.kind
    laid = Change(change.path, change.value, kind, change.text)
    found: dict[str, Any] = apply(Document(values, {}, "overrides"), [laid]).value
    forget(origins, tuple(change.path.split(".")))
    is_there, value = find(found, change.path)
    for path in leaves(value, tuple(change.path.split("."))) if is_there else ():
        origins[path] = Origin("override", change.text)
    return found


def check(config: SiteConfig) -> None:
    """Raise SpecError for all that is wrong in the sections of `config`."""
    problems = []
    cluster = {"name": _UNKNOWN, **config.cluster}
    for model, section, values in (
        (Cluster, "cluster", cluster),
        (SlurmPolicy, "scheduler", config.scheduler),
    ):
        try:
            model.model_validate(values)
        except ValidationError as error:
            problems += problems_of(error, model, section, values, config)
    for section in ("paths", "retention"):
        for name, value in getattr(config, section).items():
            wrong = wrong_setting(section, name, value) if value is not None else None
            if wrong is not None:
                problems.append(_placed(Problem(wrong, key=name), section, config))
    if problems:
        raise SpecError(problems)


def cluster_of(config: SiteConfig, name: str) -> Cluster:
    """Return what `config` knows of the cluster that calls itself `name`.

    Raises SpecError with every problem found, UserError where another cluster was chosen.
    """
    values = {"name": name, **config.on(name).cluster}
    found: Cluster = _valid(Cluster, "cluster", values, config.on(name))
    if found.name != name:
        chosen = config.choices.get("cluster")
        raise UserError(
            f"cluster={chosen} describes the cluster '{found.name}', and this host belongs to "
            f"'{name}'",
            hint=f"go to a host of '{found.name}', or choose another: nexa-hpc config groups",
        )
    return found


def policy_of(config: SiteConfig) -> SlurmPolicy:
    """Return the policy in `config`; raises SpecError with every problem found."""
    found: SlurmPolicy = _valid(SlurmPolicy, "scheduler", config.scheduler, config)
    return found


def _valid(model: type[Frozen], section: str, values: dict[str, Any], config: SiteConfig) -> Any:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise SpecError(problems_of(error, model, section, values, config)) from error


def problems_of(
    error: ValidationError,
    model: type[Frozen],
    section: str,
    values: dict[str, Any],
    config: SiteConfig,
) -> list[Problem]:
    """Return what pydantic found wrong in a section, each with where it was said."""
    return [_placed(one, section, config) for one in translate(error, model, values, None)]


def _placed(problem: Problem, section: str, config: SiteConfig) -> Problem:
    path = f"{section}.{problem.key}" if problem.key else section
    origin = nearest_origin(config.origins, path)
    if origin is None:
        return problem
    if origin.layer == "override":
        return Problem(problem.message, f"override '{origin.file}'", key=problem.key)
    return Problem(problem.message, origin.file, origin.line, key=problem.key)
