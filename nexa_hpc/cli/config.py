"""`config show` and `config groups`: what was composed, where from, and what may be chosen."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from nexa_hpc.cli.completion import CONFIG_DIR_OPTION, OVERRIDES_ARGUMENT
from nexa_hpc.cli.session import Session
from nexa_hpc.cli.tables import print_table
from nexa_hpc.compose.document import Composed, compose_pipeline
from nexa_hpc.compose.layers import find_layers
from nexa_hpc.compose.showing import Leaf, options_of, pipeline_leaves, site_leaves
from nexa_hpc.compose.site import SiteConfig, site_config
from nexa_hpc.core.paths import find_root
from nexa_hpc.core.quoting import printable
from nexa_hpc.core.scalars import resolve
from nexa_hpc.errors import NexaError
from nexa_hpc.schedulers.slurm.here import this_cluster

_AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
_COLUMN = 44
"""Where origins begin, if the values leave room."""
_PLAIN = re.compile(r"[\w./@+ -]+")


@click.group()
def group() -> None:
    """What configuration comes to, and where each value is from.

    \b
    Example:
      nexa-hpc config show pipelines/general_e2e.yaml steps.train.params.learning_rate=3e-5
      nexa-hpc config groups
    """


def _about_a_file(command: Callable[..., None]) -> Callable[..., None]:
    """Add what names a file, its overrides and the form of the output."""
    file = click.argument("file", required=False, type=click.Path(path_type=Path))
    return file(OVERRIDES_ARGUMENT(CONFIG_DIR_OPTION(_AS_JSON(command))))


@group.command()
@_about_a_file
@click.pass_obj
def show(
    session: Session,
    file: Path | None,
    overrides: tuple[str, ...],
    config_dirs: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Print FILE under the overrides, each value with its origin; without FILE, the site's part.

    \b
    Example:
      nexa-hpc config show
      nexa-hpc config show pipelines/general_e2e.yaml cluster=generic
    """
    root, composed, config = _composed(session, file, overrides, config_dirs)
    leaves = list(pipeline_leaves(composed, root)) if composed is not None else []
    leaves += site_leaves(config, root)
    if as_json:
        values = [{"path": leaf.path, "value": leaf.value, "from": leaf.origin} for leaf in leaves]
        print(json.dumps({"values": values, "choices": config.choices}))
        return
    for line, origin in _lines(leaves):
        text = printable(line)
        print(f"{text:<{_COLUMN}}  # {printable(origin)}" if origin else text)
    for group_, option in config.choices.items():
        told = config.chosen_by.get(group_)
        print(f"# {group_}={option}" + (f", by {told.shown(root)}" if told else ""))


@group.command()
@_about_a_file
@click.pass_obj
def groups(
    session: Session,
    file: Path | None,
    overrides: tuple[str, ...],
    config_dirs: tuple[Path, ...],
    as_json: bool,
) -> None:
    """List the groups and their options, where each is from, and which are chosen (by FILE).

    \b
    Example:
      nexa-hpc config groups
    """
    root, composed, config = _composed(session, file, overrides, config_dirs)
    chosen = composed.choices if composed is not None else {}
    options = options_of(find_layers(root, config_dirs), config, chosen, root)
    if as_json:
        print(json.dumps([one._asdict() for one in options]))
        return
    rows = [[o.group, o.name, "*" if o.is_chosen else "", f"{o.layer} {o.file}"] for o in options]
    print_table(["GROUP", "OPTION", "CHOSEN", "FROM"], rows)


def _composed(
    session: Session,
    file: Path | None,
    overrides: Sequence[str],
    config_dirs: Sequence[Path],
) -> tuple[Path, Composed | None, SiteConfig]:
    """Return the root, what `file` is composed to where there is one, and the site's part of it."""
    if file is None:
        root, composed = session.root, None
        config = site_config(root, config_dirs=config_dirs)
    else:
        root = find_root(Path.cwd(), file, session.project)
        composed = compose_pipeline(file, root, overrides, config_dirs=config_dirs)
        config = composed.config
    session.announce_root(root)
    return root, composed, _on_this_cluster(config)


def _on_this_cluster(config: SiteConfig) -> SiteConfig:
    try:
        name = this_cluster()
    except NexaError:
        return config
    return config.on(name) if name is not None else config


def _lines(leaves: Sequence[Leaf]) -> Iterator[tuple[str, str]]:
    """Yield the lines of the leaves as YAML, each with the origin of its value."""
    before: tuple[Any, ...] = ()
    for leaf in leaves:
        shared = 0
        while shared < min(len(before), len(leaf.place)) and before[shared] == leaf.place[shared]:
            shared += 1
        dash = ""
        for depth in range(shared, len(leaf.place)):
            part, is_last = leaf.place[depth], depth == len(leaf.place) - 1
            if isinstance(part, int) and not is_last:
                dash = "- "
                continue
            indent = "  " * (depth - bool(dash))
            head = "-" if isinstance(part, int) else f"{part}:"
            value = f" {_scalar(leaf.value)}" if is_last else ""
            yield f"{indent}{dash}{head}{value}", leaf.origin if is_last else ""
            dash = ""
        before = leaf.place


def _scalar(value: Any) -> str:
    """Return `value` as YAML that reads as the same value."""
    is_plain = isinstance(value, str) and _PLAIN.fullmatch(value) and value == value.strip()
    if is_plain and not value.startswith("-") and isinstance(resolve(value), str):
        return str(value)
    return json.dumps(value, ensure_ascii=False)
