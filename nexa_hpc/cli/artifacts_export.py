"""`artifacts export`: the results of a run as real files, for where links would dangle."""

from __future__ import annotations

from pathlib import Path

import click

from nexa_hpc.cli.completion import RUN_OPTION
from nexa_hpc.cli.session import Session
from nexa_hpc.cli.tables import size
from nexa_hpc.core.exporting import export_run


@click.command()
@click.argument("dest", type=click.Path(path_type=Path))
@RUN_OPTION
@click.pass_obj
def export(session: Session, dest: Path, run: str | None) -> None:
    """Copy the results of RUN (default: the newest) into DEST, as real files.

    Each `out` is at DEST/<out>; a step without one is at DEST/<pipeline>/<step>. Every byte is
    compared with what was published. Nothing is overwritten.

    \b
    Example:
      nexa-hpc artifacts export /media/disk/results
      nexa-hpc artifacts export results --run general_e2e-3
    """
    found = session.find_run(run)
    exported = export_run(found, dest)
    for artifact in exported:
        print(f"{artifact.path}  {size(artifact.size_bytes)}")
    total = size(sum(artifact.size_bytes for artifact in exported))
    print(f"run {found.id}: {len(exported)} artifacts copied to {dest}, {total}, all whole")
