"""One composition by Hydra itself: a primary configuration, its `defaults:`, choices of groups.

The values come back unresolved, as plain Python. Where nothing but values differs, nobody needs to
compose again; see `pipelines`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexa_hpc.compose.failing import PRIMARY, hydra_imported, told
from nexa_hpc.compose.interpolation import SHELL
from nexa_hpc.compose.secrets import refuse_secrets, secret_names

_HYDRA = "hydra"


@dataclass(frozen=True)
class Composition:
    """What Hydra made: plain values, and which option of each group it took."""

    value: dict[str, Any]
    choices: dict[str, Any]


def compose(
    primary: Mapping[str, Any], folders: Sequence[Path], overrides: Sequence[str], what: str
) -> Composition:
    """Return `primary` composed with the options in `folders`, the highest precedence first.

    `what` is composed is named in the UserError that is raised for whatever Hydra refuses.
    """
    with hydra_imported():
        from hydra import compose as by_hydra
        from hydra import initialize_config_dir
        from omegaconf import OmegaConf

    words: dict[str, str] = {}
    pipeline = primary.get("pipeline")
    if isinstance(pipeline, Mapping):
        bare, words = without_shell(pipeline.get("steps"))
        primary = {**primary, "pipeline": {**pipeline, "steps": bare}} if words else primary
    main, *others = [folder.resolve() for folder in folders]
    search_path = ",".join(_quoted(f"file://{folder}") for folder in others)
    with (
        told(what),
        _stored(primary),
        _version_base_kept(),
        initialize_config_dir(str(main), job_name="nexa_hpc", version_base="1.3"),
    ):
        config = by_hydra(
            PRIMARY, [f"hydra.searchpath=[{search_path}]", *overrides], return_hydra_config=True
        )
        choices = OmegaConf.to_container(config.hydra.runtime.choices)
        value = OmegaConf.to_container(config, resolve=False)
    assert isinstance(value, dict) and isinstance(choices, dict)
    value.pop(_HYDRA, None)
    steps = value["pipeline"].get("steps") if isinstance(value.get("pipeline"), dict) else None
    refuse_secrets(value, secret_names(steps))
    if words and isinstance(value["pipeline"], dict):
        value["pipeline"]["steps"] = with_shell(value["pipeline"]["steps"], words)
    return Composition(
        {str(key): part for key, part in value.items()},
        {str(group): option for group, option in choices.items()},
    )


def resolve_at(top: Any, place: tuple[str | int, ...], what: str) -> Any:
    """Return what lies in `top` at `place`, with all resolved that OmegaConf can interpolate.

    Raises UserError, about `what`.
    """
    with hydra_imported():
        from omegaconf import OmegaConf

    with told(what):
        node: Any = OmegaConf.create(top)
        for part in place:
            node = node[part] if part == place[-1] else node._get_node(part)
        if not OmegaConf.is_config(node):
            return node
        return OmegaConf.to_container(node, resolve=True, throw_on_missing=True)


def without_shell(steps: Any) -> tuple[Any, dict[str, str]]:
    """Return `steps` with a word in the place of each text that is the shell's, and word -> text.

    OmegaConf would take offence at some of them, as at `"${"`.
    """
    words: dict[str, str] = {}

    def word(text: Any) -> Any:
        if isinstance(text, list):
            return [word(line) for line in text]
        if not isinstance(text, str) or "${" not in text:
            return text
        name = f"nexa_hpc_shell_{len(words)}"
        words[name] = text
        return name

    return _mapped(steps, word), words


def with_shell(steps: Any, words: Mapping[str, str]) -> Any:
    """Return `steps` with the texts that `without_shell` has taken out."""

    def text(word: Any) -> Any:
        if isinstance(word, list):
            return [text(one) for one in word]
        return words.get(word, word) if isinstance(word, str) else word

    return _mapped(steps, text) if words else steps


def _mapped(steps: Any, act: Callable[[Any], Any]) -> Any:
    if not isinstance(steps, list):
        return steps
    return [_step_mapped(step, act) if isinstance(step, dict) else step for step in steps]


def _step_mapped(step: dict[str, Any], act: Callable[[Any], Any]) -> dict[str, Any]:
    found = dict(step)
    for section, key in SHELL.items():
        inner = step.get(section)
        if isinstance(inner, dict) and key in inner:
            found[section] = {**inner, key: act(inner[key])}
    return found


@contextlib.contextmanager
def _stored(primary: Mapping[str, Any]) -> Iterator[None]:
    """Offer `primary` to Hydra under `PRIMARY`: it has been read already, with lines and safely."""
    from hydra.core.config_store import ConfigStore

    defaults = list(primary["defaults"] or [])
    if "_self_" not in defaults:
        # Its place where none is named, since Hydra 1.1, which would only warn of it.
        own = (n for n, entry in enumerate(defaults) if "override " in str(entry))
        defaults.insert(next(own, len(defaults)), "_self_")
    store = ConfigStore.instance()
    store.store(name=PRIMARY, node={**primary, "defaults": defaults})
    try:
        yield
    finally:
        store.repo.pop(f"{PRIMARY}.yaml", None)


@contextlib.contextmanager
def _version_base_kept() -> Iterator[None]:
    """Give an app of Hydra in this process its `version_base` back: Hydra restores all but that."""
    from hydra.version import VersionBase

    kept = VersionBase.instance()
    before = kept.version_base
    try:
        yield
    finally:
        kept.version_base = before


def _quoted(text: str) -> str:
    inner = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{inner}'"
