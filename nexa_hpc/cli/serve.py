"""`nexa-hpc serve …`: servers started, listed, asked and stopped.

What a script reads goes to stdout, everything else to stderr. All but `start` is light.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click

from nexa_hpc.cli.session import Session
from nexa_hpc.cli.tables import local_time, print_table
from nexa_hpc.core.servers import Servers, answers
from nexa_hpc.errors import StepError, UserError

_FOLLOW_S = 0.3


@click.group("serve")
def group() -> None:
    """Servers of models: OpenAI's endpoints, or /classify, on this machine.

    \b
    Example:
      nexa-hpc serve start models:movie-sentiment@production --name sentiment
      curl "$(nexa-hpc serve url sentiment)/v1/models"
    """


def _servers(session: Session) -> Servers:
    session.announce_root()
    return Servers(session.paths.servers)


@group.command()
@click.argument("model")
@click.option("--name", help="What to call it (default: after the model).")
@click.option("--backend", default="hf_runtime", show_default=True, help="Or: vllm.")
@click.option("--host", help="What to listen on (default: 127.0.0.1).")
@click.option("--port", type=int, help="Default: 0, a free one.")
@click.option("--tensor-parallel", type=int, help="Over how many GPUs a model is spread.")
@click.option("--python", help="The interpreter that has the backend (default: this one).")
@click.option("-O", "options", multiple=True, metavar="NAME=VALUE", help="The server's options.")
@click.option("--dry-run", is_flag=True, help="Print the command that would be run.")
@click.pass_obj
def start(
    session: Session,
    model: str,
    name: str | None,
    backend: str,
    host: str | None,
    port: int | None,
    tensor_parallel: int | None,
    python: str | None,
    options: Sequence[str],
    dry_run: bool,
) -> None:
    """Serve MODEL, a folder or models:NAME@TAG; return when it answers.

    The URL goes to stdout. It runs until `serve stop`, from any session.

    \b
    Example:
      nexa-hpc serve start artifacts/checkpoints/minilm --name sentiment
      nexa-hpc serve start models/smollm2 -O max_batch=16 -O token=true
    """
    # Imported here: the other commands need none of it.
    from nexa_hpc.runners import serving

    servers = _servers(session)
    given = {"host": host, "port": port, "tensor_parallel": tensor_parallel, "python": python}
    asked = {key: value for key, value in given.items() if value is not None}
    params = {**_options(options), **asked}
    called = name or _name_after(serving.model_name(model))
    _refuse(serving.problems(backend, {**params, "name": called}))
    folder = _model(session, model)
    handle = serving.make_handle(called, folder, model, backend, params)
    if dry_run:
        click.echo(shlex.join(handle.command(handle.port)))
        return
    ready = serving.start(servers, handle, lambda text: click.echo(text, err=True))
    if ready.token_variable:
        click.echo(f"clients show a token: nexa-hpc serve url {called} --token", err=True)
    click.echo(f"serving '{ready.served_as}' as {called}", err=True)
    click.echo(ready.url)


def _options(texts: Sequence[str]) -> dict[str, Any]:
    found = {}
    for text in texts:
        name, is_given, value = text.partition("=")
        if not is_given:
            raise UserError(f"-O {text}: say NAME=VALUE")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def _refuse(problems: Any) -> None:
    told = [f"{place.removeprefix('params.')}: {message}" for place, message in problems]
    if told:
        raise UserError("\n".join(told))


def _name_after(title: str) -> str:
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in title).strip("-")[:64]


def _model(session: Session, text: str) -> Path:
    # Imported here: the other commands need none of it.
    from nexa_hpc.core.artifacts import place_of
    from nexa_hpc.core.inputs import MODELS_PREFIX, PACKAGE_PREFIX, package_path
    from nexa_hpc.core.registry import Registry

    if text.startswith(MODELS_PREFIX):
        registry = Registry(session.paths.registry, project=session.paths.root)
        return registry.resolve(text).path
    if text.startswith(PACKAGE_PREFIX):
        return package_path(text)
    return place_of(session.paths.root / text)


@group.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
@click.pass_obj
def list_servers(session: Session, as_json: bool) -> None:
    """List the servers that were started, and whether they live.

    \b
    Example:
      nexa-hpc serve list --json | jq -r '.[].url'
    """
    servers = _servers(session)
    rows = []
    for name in servers.names():
        handle = servers.find(name)
        if handle is not None:
            condition, message = servers.condition(handle)
            since = datetime.fromtimestamp(handle.created_at, timezone.utc).isoformat()
            told = "; ".join([*filter(None, [message]), *handle.notes])
            rows.append(
                {
                    "name": name,
                    "state": condition.value,
                    "url": handle.url if condition.lives else "",
                    "model": handle.model,
                    "backend": handle.backend,
                    "since": since,
                    "note": told,
                }
            )
    if as_json:
        click.echo(json.dumps(rows, indent=1))
    elif not rows:
        click.echo("no servers; start one: nexa-hpc serve start MODEL", err=True)
    else:
        header = ["NAME", "STATE", "URL", "MODEL", "BACKEND", "SINCE", "NOTE"]
        shown = [[*row.values()] for row in rows]
        print_table(header, [[*r[:5], local_time(r[5]), r[6]] for r in shown])


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
    servers = _servers(session)
    told = answers(_live_url(servers, name))
    if told is not None:
        raise StepError(f"server '{name}' does not answer: {told}")
    click.echo(f"{name} answers", err=True)


def _live_url(servers: Servers, name: str) -> str:
    handle = servers.get(name)
    condition, message = servers.condition(handle)
    if not condition.lives or not handle.url:
        told = f": {message}" if message else ""
        raise StepError(
            f"server '{name}' is {condition.value}{told}", hint=f"nexa-hpc serve logs {name}"
        )
    return handle.url
