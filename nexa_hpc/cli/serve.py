"""`nexa-hpc serve …`: servers started, listed, asked and stopped.

What a script reads goes to stdout, everything else to stderr. All but `start` is light.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone

import click

from nexa_hpc.cli.serve_start import servers_of, start
from nexa_hpc.cli.session import Session
from nexa_hpc.cli.tables import local_time, print_table
from nexa_hpc.core.answering import is_reached, silence, where
from nexa_hpc.core.servers import Condition, Handle, Servers, is_here
from nexa_hpc.errors import StepError

SILENT = "SILENT"
"""Shown of a server that was healthy and does not answer, where nothing says that it has ended."""
_FOLLOW_S = 0.3


@click.group("serve")
def group() -> None:
    """Servers of models: OpenAI's endpoints, or /classify, on this machine or as jobs in Slurm.

    \b
    Example:
      nexa-hpc serve start models:movie-sentiment@production --name sentiment
      curl "$(nexa-hpc serve url sentiment)/v1/models"
    """


group.add_command(start)


def _servers(session: Session) -> Servers:
    session.announce_root()
    return servers_of(session)


@group.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
@click.pass_obj
def list_servers(session: Session, as_json: bool) -> None:
    """List the servers that were started, and whether they live.

    SILENT is one that cannot be seen from this machine, and does not answer.

    \b
    Example:
      nexa-hpc serve list --json | jq -r '.[].url'
    """
    servers = _servers(session)
    rows = [_row(servers, handle) for name in servers.names() if (handle := servers.find(name))]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
    elif not rows:
        click.echo("no servers; start one: nexa-hpc serve start MODEL", err=True)
    else:
        header = ["NAME", "STATE", "URL", "MODEL", "BACKEND", "SINCE", "NOTE"]
        shown = [[*row.values()] for row in rows]
        print_table(header, [[*r[:5], local_time(r[5]), r[6]] for r in shown])


def _row(servers: Servers, handle: Handle) -> dict[str, str]:
    condition, message = servers.condition(handle)
    state, url = condition.value, handle.url if condition is Condition.HEALTHY else ""
    if url and not is_here(handle) and (told := _silence(servers, handle)):
        state, url, message = SILENT, "", told
    return {
        "name": handle.name,
        "state": state,
        "url": url,
        "model": handle.model,
        "backend": handle.backend,
        "since": datetime.fromtimestamp(handle.created_at, timezone.utc).isoformat(),
        "note": "; ".join([*filter(None, [message]), *handle.notes]),
    }


def _silence(servers: Servers, handle: Handle) -> str:
    """Return why a server is SILENT whose supervisor cannot be seen: it is on another machine, or
    was here before a reboot.
    """
    told = silence(servers, handle)
    # The clock of another machine is good enough for what is only shown.
    heard_s = servers.heard_s(handle) if told is not None else 0.0
    if told is None or (not is_reached(handle) and heard_s < 2 * servers.silence_s):
        return ""
    since = f"last heard of {timedelta(seconds=round(heard_s))} ago" if heard_s else ""
    return "; ".join(filter(None, [told, since, f"ended? nexa-hpc serve stop {handle.name}"]))


@group.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.pass_obj
def stop(session: Session, names: Sequence[str]) -> None:
    """Stop servers, with all that they started.

    \b
    Example:
      nexa-hpc serve stop sentiment
    """
    servers = _servers(session)
    for handle in [servers.get(name) for name in names]:
        servers.stop(handle)
        click.echo(f"stopped {handle.name}", err=True)


@group.command()
@click.argument("name")
@click.option("-f", "--follow", is_flag=True, help="Go on printing until the server has ended.")
@click.pass_obj
def logs(session: Session, name: str, follow: bool) -> None:
    """Print what a server has printed; also of one that has ended.

    \b
    Example:
      nexa-hpc serve logs sentiment -f
    """
    servers = _servers(session)
    log, position = servers.file(name, "log"), 0
    if not log.is_file():
        servers.get(name)
    while True:
        handle = servers.find(name)
        ended = not follow or handle is None or not servers.condition(handle)[0].lives
        if log.is_file():
            with log.open("rb") as stream:
                stream.seek(position)
                sys.stdout.buffer.write(stream.read())
                sys.stdout.buffer.flush()
                position = stream.tell()
        if ended:
            return
        time.sleep(_FOLLOW_S)


@group.command()
@click.argument("name")
@click.option("--token", is_flag=True, help="Print the token that clients must show instead.")
@click.pass_obj
def url(session: Session, name: str, token: bool) -> None:
    """Print where a server answers; OpenAI's clients want /v1 behind it.

    \b
    Example:
      curl "$(nexa-hpc serve url sentiment)/v1/models"
    """
    servers = _servers(session)
    if token:
        click.echo(servers.token(servers.get(name).name) or "")
        return
    click.echo(_live_url(servers, name))


@group.command()
@click.argument("name")
@click.pass_obj
def health(session: Session, name: str) -> None:
    """Ask a server whether it is well; exit code 1 where it is not.

    \b
    Example:
      nexa-hpc serve health sentiment && echo yes
    """
    _live_url(_servers(session), name)
    click.echo(f"{name} answers", err=True)


def _live_url(servers: Servers, name: str) -> str:
    handle = servers.get(name)
    condition, message = servers.condition(handle)
    if condition is not Condition.HEALTHY:
        told = f": {message}" if message else ""
        raise StepError(
            f"server '{name}' is {condition.value}{told}", hint=f"nexa-hpc serve logs {name}"
        )
    if not is_reached(handle):
        raise StepError(
            f"server '{name}' listens on {handle.host} of {where(handle)}, not reached from here",
            hint=f"nexa-hpc serve stop {name}, and start it with --host 0.0.0.0",
        )
    # It may have gone since Slurm, or the disk, last told of it.
    if (silent := silence(servers, handle)) is not None:
        raise StepError(f"server '{name}' does not answer at {handle.url}: {silent}")
    return handle.url
