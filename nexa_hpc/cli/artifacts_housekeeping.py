"""`artifacts du` and `artifacts gc`: how much is in the store, why it is kept, and what can go."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import click

from nexa_hpc.cli.session import Session
from nexa_hpc.cli.tables import local_time, print_table, size
from nexa_hpc.core.collecting import collect
from nexa_hpc.core.paths import ProjectPaths
from nexa_hpc.core.retention import DAY_S, Holding, days, holdings
from nexa_hpc.core.store import size_below, thrown_away
from nexa_hpc.core.sweeping import Collection, Item

_KEY_SHOWN = 12
_AGES = {1: "under a day", 7: "under a week", 30: "under 30 days", 365: "under a year"}
_OLDEST, _UNTOLD = "a year or more", "?"

_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")


@click.command()
@click.option(
    "--by",
    type=click.Choice(["pipeline", "user", "age"]),
    default="pipeline",
    help="What to add up by (default: pipeline).",
)
@click.option("--why", is_flag=True, help="List each artifact, and why it is kept.")
@_as_json
@click.pass_obj
def du(session: Session, by: str, why: bool, as_json: bool) -> None:
    """Show how much is in the store, and how much of it `gc` would free.

    \b
    Example:
      nexa-hpc artifacts du
      nexa-hpc artifacts du --by age
      nexa-hpc artifacts du --why
    """
    session.announce_root()
    paths, retention = session.paths, session.settings.retention
    entries = [_entry(h, paths) for h in holdings(paths, retention, time.time())]
    groups = _groups(entries, by)
    trash = sum(size_below(thrown.path) for thrown in thrown_away(paths.store))
    planned = collect(paths, retention, dry_run=True)
    freed = _bytes(planned.moved) + _bytes(planned.removed)
    if as_json:
        totals = {"trash_bytes": trash, "gc_would_free_bytes": freed}
        print(json.dumps({"by": by, "groups": groups, "artifacts": entries, **totals}))
        return
    if why:
        _print_reasons(entries)
    else:
        _print_groups(groups, by)
    print(f"in the trash: {size(trash)}")
    print(f"gc would free: {size(freed)}")


@click.command()
@click.option("--dry-run", is_flag=True, help="Only show what would go, and why.")
@click.option(
    "--orphans",
    is_flag=True,
    help="Take what no run or record of this project names, too; not in a store that several "
    "projects share.",
)
@_as_json
@click.pass_obj
def gc(session: Session, dry_run: bool, orphans: bool, as_json: bool) -> None:
    """Take away what nothing keeps: results into the trash, old trash and leftovers for good.

    Safe at any moment, beside running pipelines. A registered version, the newest run of each
    pipeline and whatever runs are always kept; `retention` in nexa.yaml says for how long the rest
    is.

    \b
    Example:
      nexa-hpc artifacts gc --dry-run
      nexa-hpc artifacts gc
    """
    session.announce_root()
    retention = session.settings.retention
    done = collect(session.paths, retention, dry_run=dry_run, orphans=orphans)
    if as_json:
        print(json.dumps(done.to_json()))
    else:
        _print_collection(done, session.paths, retention.trash_days)
    for trouble in done.troubles:
        print(f"left for the next gc: {trouble}", file=sys.stderr)


def _entry(holding: Holding, paths: ProjectPaths) -> dict[str, Any]:
    artifact = holding.entry.finding.artifact
    meta = artifact.meta if artifact is not None else {}
    made_by = meta.get("made_by", {})
    return {
        "path": paths.relative(holding.entry.place),
        "key": holding.entry.place.name[:_KEY_SHOWN],
        "bytes": holding.size_bytes,
        "made": meta.get("created_at"),
        "pipeline": made_by.get("pipeline", _UNTOLD),
        "run": made_by.get("run", _UNTOLD),
        "step": made_by.get("step", _UNTOLD),
        "user": made_by.get("user", _UNTOLD),
        "age": _age(meta.get("created_at")),
        "state": holding.entry.finding.presence.value,
        "kept": holding.kept,
    }


def _age(made: str | None) -> str:
    if made is None:
        return _UNTOLD
    age_days = (time.time() - datetime.fromisoformat(made).timestamp()) / DAY_S
    return next((name for most, name in _AGES.items() if age_days < most), _OLDEST)


def _groups(entries: list[dict[str, Any]], by: str) -> list[dict[str, Any]]:
    """Return for each value of `by` how many artifacts there are, their size, and what is loose."""
    order = [*_AGES.values(), _OLDEST, _UNTOLD]
    names = {entry[by] for entry in entries}
    groups = []
    for name in sorted(names, key=lambda name: (order.index(name) if by == "age" else 0, name)):
        members = [entry for entry in entries if entry[by] == name]
        loose = sum(entry["bytes"] for entry in members if entry["kept"] is None)
        total = sum(entry["bytes"] for entry in members)
        groups.append({by: name, "artifacts": len(members), "bytes": total, "loose_bytes": loose})
    return groups


def _print_groups(groups: list[dict[str, Any]], by: str) -> None:
    rows = [
        [str(g[by]), str(g["artifacts"]), size(g["bytes"]), size(g["loose_bytes"])] for g in groups
    ]
    numbers = [sum(g[n] for g in groups) for n in ("artifacts", "bytes", "loose_bytes")]
    rows.append(["all", str(numbers[0]), size(numbers[1]), size(numbers[2])])
    print_table([by.upper(), "ARTIFACTS", "SIZE", "NOT KEPT"], rows)


def _print_reasons(entries: list[dict[str, Any]]) -> None:
    rows = [
        [
            entry["key"],
            size(entry["bytes"]),
            local_time(entry["made"]) if entry["made"] else _UNTOLD,
            f"{entry['run']}/{entry['step']}",
            entry["kept"] or "(nothing keeps it)",
        ]
        for entry in entries
    ]
    print_table(["KEY", "SIZE", "MADE", "BY", "KEPT BECAUSE"], rows)


def _print_collection(done: Collection, paths: ProjectPaths, trash_days: float) -> None:
    would = "would be " if done.dry_run else ""
    after = f", for {days(trash_days)}" if trash_days else ""
    for words, items in (
        (f"{would}moved to the trash{after}", done.moved),
        (f"{would}put back from the trash", done.restored),
        (f"{would}removed", done.removed),
    ):
        for item in items:
            print(f"  {paths.relative(item.path)}  {size(item.size_bytes)}  {item.why}")
        if items:
            print(f"{words}: {len(items)}, {size(_bytes(items))}")
    if not (done.moved or done.restored or done.removed):
        print("nothing to collect")


def _bytes(items: Iterable[Item]) -> int:
    return sum(item.size_bytes for item in items)
