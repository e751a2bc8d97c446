"""`nexa-hpc serve start`: a server on this machine, or as a job in Slurm.

The URL goes to stdout, how it goes to stderr. Only the command itself loads what is heavy.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from nexa_hpc.cli.session import Session
from nexa_hpc.core.servers import EVERYWHERE, LOCAL, SLURM, Handle, Servers
from nexa_hpc.errors import Interrupted, SchedulerError, UserError
from nexa_hpc.schedulers.slurm.commands import require_command
from nexa_hpc.schedulers.slurm.server_jobs import ServerJobs

TEMPLATE = "server"
_GPU_OPTIONS = ("gpus", "gpus-per-node", "gpus-per-task")
_SAID_OTHERWISE = {
    "model": "MODEL",
    **{name: f"--{name.replace('_', '-')}" for name in ("name", "host", "port", "tensor_parallel")},
    **{name: f"--{name.replace('_', '-')}" for name in ("python", "dry_run")},
}
"""Params that are no options of the server."""


def servers_of(session: Session) -> Servers:
    """Return the servers of the project, with those in Slurm."""
    folder = session.paths.servers
    return Servers(folder, ServerJobs(folder))


@click.command()
@click.argument("model")
@click.option("--name", help="What to call it (default: after the model).")
@click.option("--backend", default="hf_runtime", show_default=True, help="Or: vllm.")
@click.option("--host", help="What to listen on (default: 127.0.0.1; in Slurm: 0.0.0.0).")
@click.option("--port", type=int, help="Default: 0, a free one.")
@click.option("--tensor-parallel", type=int, help="Over how many GPUs a model is spread.")
@click.option("--python", help="The interpreter that has the backend (default: this one).")
@click.option("-O", "options", multiple=True, metavar="NAME=VALUE", help="The server's options.")
@click.option(
    "--scheduler",
    type=click.Choice([LOCAL, SLURM]),
    default=LOCAL,
    show_default=True,
    help="Where it runs: on this machine, or as a job.",
)
@click.option(
    "--sbatch",
    "asked",
    multiple=True,
    metavar="NAME=VALUE",
    help="In Slurm: an option of sbatch: --sbatch time=8:00:00 --sbatch gpus=1.",
)
@click.option("--no-wait", is_flag=True, help="In Slurm: return when the job is submitted.")
@click.option("--dry-run", is_flag=True, help="Print the command that would be run.")
@click.pass_obj
def start(
    session: Session,
    /,
    model: str,
    name: str | None,
    backend: str,
    options: Sequence[str],
    scheduler: str,
    asked: Sequence[str],
    no_wait: bool,
    dry_run: bool,
    **given: Any,
) -> None:
    """Serve MODEL, a folder or models:NAME@TAG; return when it answers.

    The URL goes to stdout. It runs until `serve stop`, from any session; a job at most until its
    time limit. `serve url NAME` tells the URL, and the token, on any node.

    \b
    Example:
      nexa-hpc serve start artifacts/checkpoints/minilm --name sentiment
      nexa-hpc serve start models/smollm2 -O max_batch=16 -O token=true
      nexa-hpc serve start models:chat@production --scheduler slurm --sbatch time=8:00:00
    """
    # Imported here: the other commands need none of it.
    from nexa_hpc.runners import serving

    session.announce_root()
    if scheduler == LOCAL and (asked or no_wait):
        raise UserError("--sbatch and --no-wait are for jobs: add `--scheduler slurm`")
    servers = servers_of(session)
    params = _params(options, given, scheduler)
    called = name or _name_after(serving.model_name(model))
    # It knows which interpreter jobs have.
    script = _Script(session, asked, params) if scheduler == SLURM else None
    _refuse(serving.problems(backend, {**params, "name": called}))
    handle = serving.make_handle(
        called,
        _model(session, model),
        model,
        backend,
        params,
        session.paths.root,
        scheduler=scheduler,
    )
    if dry_run:
        command = serving.shown_command(handle)
        before = f"{script.of(servers, handle)}# The server: " if script is not None else ""
        click.echo(before + command)
    elif no_wait and script is not None:
        _start_job(servers, handle, script, wait=False)
        _tell(f"once it answers: nexa-hpc serve url {called}")
    elif script is not None:
        _show(_start_job(servers, handle, script, wait=True))
    else:
        _show(serving.start(servers, handle, _tell))


def _params(options: Sequence[str], given: Mapping[str, Any], scheduler: str) -> dict[str, Any]:
    """Return the params that the options of the command come to."""
    params = {**_options(options), **{n: value for n, value in given.items() if value is not None}}
    if "/" in str(params.get("python")):
        # A server has a folder of its own. What a link leads to is another environment's.
        params["python"] = str(Path.cwd() / str(params["python"]))
    if scheduler == SLURM:
        params.setdefault("host", EVERYWHERE)
    return params


def _show(handle: Handle) -> None:
    """Tell how a server that answers is reached."""
    if handle.token_variable:
        _tell(f"clients show a token: nexa-hpc serve url {handle.name} --token")
    _tell(f"serving '{handle.served_as}' as {handle.name}")
    click.echo(handle.url)


def _start_job(servers: Servers, handle: Handle, script: _Script, *, wait: bool) -> Handle:
    """Submit a server's job and return its handle, with `wait` once it answers.

    Nothing of it is left where it is refused, or this is interrupted.
    """
    # Imported here: the other commands need none of it.
    from nexa_hpc.runners import serving

    require_command("sbatch")
    serving.create(servers, handle)
    try:
        script.submit(servers, handle)
        return serving.await_healthy(servers, handle, lambda: "", _tell) if wait else handle
    except (SchedulerError, KeyboardInterrupt, Interrupted, OSError):
        servers.stop(handle)
        raise


def _tell(text: str) -> None:
    click.echo(text, err=True)


class _Script:
    """The template of servers, filled for the cluster of this host."""

    def __init__(self, session: Session, asked: Sequence[str], params: dict[str, Any]) -> None:
        # Imported here: the other commands need none of it.
        from nexa_hpc.cli.sbatch import cluster_here
        from nexa_hpc.compose.run_config import policy_of
        from nexa_hpc.compose.site import site_config
        from nexa_hpc.runners import gpus
        from nexa_hpc.schedulers.slurm.templates import find_template, options, render
        from nexa_hpc.slurm_terms import refuse_folder

        refuse_folder(session.paths.servers)
        self._root = session.root
        cluster = cluster_here(session.root)
        if cluster.python:
            params.setdefault("python", cluster.python)
        self._python = Path(cluster.python or sys.executable)
        template = find_template(session.root, TEMPLATE)
        filled, given = options(cluster, policy_of(site_config(session.root)), asked)
        _agree_on_gpus(given, gpus.spread(params))
        self._render: Callable[[list[str]], str] = lambda argv: render(
            template, argv, filled, given, self._python
        )

    def of(self, servers: Servers, handle: Handle) -> str:
        """Return the script whose job holds the server of `handle`."""
        # Imported here: the other commands need none of it.
        from nexa_hpc.runners import supervising

        return self._render(supervising.command(servers, handle, str(self._python)))

    def submit(self, servers: Servers, handle: Handle) -> None:
        """Submit it; raises SchedulerError."""
        # Imported here: the other commands need none of it.
        from nexa_hpc.core import atomic
        from nexa_hpc.schedulers.slurm import server_jobs

        log = servers.file(handle.name, "log")
        atomic.open_log(log).close()
        _tell(
            f"submitted job {server_jobs.submit(handle, self.of(servers, handle), self._root, log)}"
        )


def _agree_on_gpus(given: dict[str, str], spread: int) -> None:
    """Ask for as many GPUs as the model is spread over; raises UserError where others are asked."""
    # Imported here: the other commands need none of it.
    from nexa_hpc.runners import gpus

    named = {name: given[name].rpartition(":")[2] for name in _GPU_OPTIONS if name in given}
    in_gres = gpus.of_gres(given.get("gres", ""))
    if in_gres is not None:
        named["gres"] = str(in_gres)
    for name, count in named.items():
        if count.isdigit() and max(int(count), spread) > 1 and int(count) != spread:
            raise UserError(
                f"{spread} GPUs for the model and --sbatch {name}={given[name]} do not agree: "
                f"say --tensor-parallel {count}, or ask for {spread}"
            )
    if spread > 1 and not named and "gres" not in given:
        given["gpus-per-node"] = str(spread)


def _options(texts: Sequence[str]) -> dict[str, Any]:
    found = {}
    for text in texts:
        name, is_given, value = text.partition("=")
        if not is_given:
            raise UserError(f"-O {text}: say NAME=VALUE")
        if name in _SAID_OTHERWISE:
            raise UserError(f"-O {text}: say it as {_SAID_OTHERWISE[name]}")
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
