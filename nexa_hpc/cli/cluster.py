"""`cluster probe` and `cluster show`: what is known of a Slurm cluster, and where from."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel

from nexa_hpc.cli.session import Session
from nexa_hpc.cli.tables import print_table
from nexa_hpc.compose.layers import find_layers, find_option
from nexa_hpc.compose.run_config import cluster_of, policy_of
from nexa_hpc.compose.site import SiteConfig, site_config
from nexa_hpc.core.quoting import printable
from nexa_hpc.errors import SchedulerError
from nexa_hpc.schedulers.slurm.preset import Change, renew
from nexa_hpc.schedulers.slurm.probe import cluster_name
from nexa_hpc.schedulers.slurm.probe import probe as ask_cluster

_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")


@click.group()
def group() -> None:
    """What is known of the Slurm cluster.

    \b
    Example:
      nexa-hpc cluster probe
      nexa-hpc cluster show
    """


@group.command()
@click.option("--dry-run", is_flag=True, help="Print the file instead of writing it.")
@_as_json
@click.pass_obj
def probe(session: Session, dry_run: bool, as_json: bool) -> None:
    """Ask the cluster for its partitions and limits, and write configs/cluster/<ClusterName>.yaml.

    Probing again renews the facts that have changed, tells which, and leaves all else in the file
    alone. A line that ends in `# keep` is never changed.

    \b
    Example:
      nexa-hpc cluster probe --dry-run
      nexa-hpc cluster probe
    """
    session.announce_root()
    probed = ask_cluster()
    renewal = renew(session.root, probed)
    written = False if dry_run else renewal.write()
    name = session.paths.relative(renewal.file)
    for note in probed.notes:
        print(f"note: {printable(note)}", file=sys.stderr)
    if as_json:
        changes = [vars(change) for change in renewal.changes]
        told = {"file": name, "written": written, "changes": changes, "notes": probed.notes}
        print(json.dumps(told))
        return
    if dry_run:
        print(renewal.text, end="")
    stream = sys.stderr if dry_run else sys.stdout
    for change in renewal.changes:
        print(f"  {printable(_told(change, renewal.is_new))}", file=stream)
    would = "would be written" if dry_run and renewal.differs else "nothing has changed"
    print(f"{name}: {'written' if written else would}", file=stream)


@group.command()
@click.argument("name", required=False)
@_as_json
@click.pass_obj
def show(session: Session, name: str | None, as_json: bool) -> None:
    """Show what is in force for the cluster NAME, and where each value comes from.

    Without NAME, for the cluster that this machine belongs to.

    \b
    Example:
      nexa-hpc cluster show
      nexa-hpc cluster show --json
    """
    session.announce_root()
    name = name or cluster_name()
    if name is None:
        raise SchedulerError(
            "no Slurm cluster answers on this machine", hint="nexa-hpc cluster show NAME"
        )
    root = session.root
    config = site_config(root, {"cluster": name}) if _has(root, name) else site_config(root)
    rows = [
        *_rows("cluster", cluster_of(config, name), config, root),
        *_rows("scheduler", policy_of(config), config, root),
    ]
    if as_json:
        print(json.dumps({"cluster": name, "values": rows}))
        return
    shown = [[row["key"], _text(row["value"]), row["from"]] for row in rows]
    print_table(["KEY", "VALUE", "FROM"], shown)
    if not _has(root, name):
        print("hint: nexa-hpc cluster probe writes what the cluster says", file=sys.stderr)


def _has(root: Path, name: str) -> bool:
    """Whether any layer knows the cluster `name`."""
    return find_option(find_layers(root), "cluster", name) is not None


def _rows(section: str, model: BaseModel, config: SiteConfig, root: Path) -> list[dict[str, Any]]:
    """Return key, value and origin of each field of `model`, a section of `config`."""
    places: dict[tuple[str, ...], Any] = {}
    for key, value in model.model_dump(mode="json").items():
        many = key == "partitions" and value
        places |= {(key, name): part for name, part in value.items()} if many else {(key,): value}
    return [
        {
            "key": ".".join(("policy" if section == "scheduler" else section, *place)),
            "value": _compact(value),
            "from": _origin(config, ".".join((section, *place)), root),
        }
        for place, value in places.items()
    ]


def _compact(value: Any) -> Any:
    """Return a mapping without what is not set in it."""
    if not isinstance(value, dict):
        return value
    inner = {key: _compact(item) for key, item in value.items()}
    return {key: item for key, item in inner.items() if item not in (None, {})}


def _origin(config: SiteConfig, path: str, root: Path) -> str:
    found = config.origins.get(path) or next(
        (o for key, o in config.origins.items() if key.startswith(f"{path}.")), None
    )
    return "default" if found is None else found.place(root)


def _text(value: Any) -> str:
    if value is None or value == {}:
        return "-"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_text(part)}" for key, part in value.items())
    return json.dumps(value) if isinstance(value, bool) else str(value)


def _told(change: Change, is_new: bool) -> str:
    if is_new:
        return f"{change.key}: {_text(change.after)}"
    if change.kept:
        words = f"kept at {_text(change.before)}; the cluster says {_text(change.after)}"
        return f"{change.key}: {words}"
    return f"{change.key}: {_text(change.before)} → {_text(change.after)}"
