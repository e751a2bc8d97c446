"""What `nexa-hpc models …` says of versions and tags: everything for scripts, words for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import click

from nexa_hpc.core.artifacts import Presence
from nexa_hpc.core.paths import ProjectPaths
from nexa_hpc.core.registry import Registry
from nexa_hpc.core.registry_entries import Tag, Version

_FIGURES_SHOWN = 3
_KEY_SHOWN = 12


def model_to_json(registry: Registry, model: str) -> dict[str, Any]:
    """Return what `list` says about a model; `gone` are versions whose files are not there."""
    versions = registry.versions(model)
    return {
        "model": model,
        "latest": max((version.number for version in versions), default=None),
        "versions": len(versions),
        "tags": registry.tags(model),
        "gone": [v.number for v in versions if registry.look(v).artifact is None],
    }


def version_to_json(registry: Registry, version: Version) -> dict[str, Any]:
    """Return everything about a version, and whether its files are there."""
    finding = registry.look(version)
    return {
        **asdict(version),
        "path": str(version.path),
        "tags": tags_of(version, registry.tags(version.model)),
        "files": finding.presence.value,
        "problem": None if finding.presence is Presence.COMPLETE else finding.reason,
        "size_bytes": None if finding.artifact is None else finding.artifact.size_bytes,
    }


def tags_of(version: Version, tags: Mapping[str, int]) -> list[str]:
    """Return those of `tags` that point to `version`."""
    return [tag for tag, number in tags.items() if number == version.number]


def tags_in_words(tags: Mapping[str, int]) -> str:
    """Return `production=3 staging=4`."""
    return " ".join(f"{tag}={number}" for tag, number in tags.items())


def gone_in_words(numbers: Sequence[int]) -> str:
    """Return whether the files of all versions are there."""
    return f"gone: {', '.join(map(str, numbers))}" if numbers else "complete"


def figures(version: Version) -> str:
    """Return the first numbers in what is said about `version`."""
    numbers = {
        name: value
        for name, value in version.meta.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    return " ".join(f"{name}={value:.4g}" for name, value in [*numbers.items()][:_FIGURES_SHOWN])


def artifact_in_words(version: Version, paths: ProjectPaths) -> str:
    """Return the start of the step key, as `artifacts list` shows it, or else the folder."""
    return version.step_key[:_KEY_SHOWN] if version.step_key else paths.relative(version.path)


def move_in_words(move: Tag) -> str:
    """Return `2 → 3`."""
    before, after = (n if n is not None else "none" for n in (move.previous, move.version))
    return f"{before} → {after}"


def print_json(value: Any) -> None:
    """Print `value` for a script."""
    click.echo(json.dumps(value, indent=1, ensure_ascii=False))


def print_fields(fields: Mapping[str, Any]) -> None:
    """Print one field to a line."""
    width = max(map(len, fields))
    for name, value in fields.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        click.echo(f"{name:<{width}}  {text}")
