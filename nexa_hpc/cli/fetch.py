"""`fetch`: what a pipeline takes from a hub, brought to where its jobs find it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from nexa_hpc.backends.hf import hub as hub_backend
from nexa_hpc.cli.completion import CONFIG_DIR_OPTION, FILE_ARGUMENT, OVERRIDES_ARGUMENT
from nexa_hpc.cli.reading import read_pipeline
from nexa_hpc.cli.run_options import MULTIRUN
from nexa_hpc.cli.session import Session
from nexa_hpc.core.checks import Memory, check_steps
from nexa_hpc.core.hub_cache import HubName, names_of
from nexa_hpc.core.quoting import printable_lines
from nexa_hpc.errors import NexaError, UserError
from nexa_hpc.pipeline import Pipeline


@click.command()
@FILE_ARGUMENT
@OVERRIDES_ARGUMENT
@MULTIRUN
@CONFIG_DIR_OPTION
@click.option(
    "--safetensors-only",
    is_flag=True,
    help="Leave out other forms of weights that are there as safetensors.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
@click.pass_obj
def fetch(
    session: Session,
    /,
    file: Path,
    overrides: tuple[str, ...],
    multirun: bool,
    config_dirs: tuple[Path, ...],
    safetensors_only: bool,
    as_json: bool,
) -> None:
    """Bring every hub model and dataset of FILE, at its revision, into paths.hub.

    For a machine with a network; the pipeline's jobs in Slurm then ask no hub. What is there is not
    fetched again. `plan` tells what is missing.

    \b
    Example:
      nexa-hpc fetch pipelines/finetune.yaml
    """
    pipeline = read_pipeline(session, file, overrides, config_dirs, multirun=multirun)
    folder = pipeline.paths.hub
    if folder is None:
        raise UserError(
            "paths.hub is not set: where is it to go?",
            hint="in nexa.yaml: `paths: {hub: /a/folder/that/all/nodes/see}`",
        )
    names = _names(pipeline)
    done = [_fetch(name, folder, safetensors_only) for name in names]
    failed = [error for _, error in done if isinstance(error, NexaError)]
    fetched = [(name, f) for name, f in done if isinstance(f, hub_backend.Fetched)]
    if as_json:
        print(json.dumps([{**_fields(name), **f._asdict()} for name, f in fetched]))
    else:
        for name, f in fetched:
            print(f"{name}: {f.commit[:12]}, {f.files} files, {f.size_bytes / 1e6:.1f} MB")
        if not names:
            print(f"{file} takes nothing from a hub")
    if failed:
        raise NexaError(
            "\n".join(printable_lines(str(error)) for error in failed), hint=failed[0].hint
        )


def _fields(name: HubName) -> dict[str, str]:
    return {"kind": name.kind, "name": name.name, "revision": name.revision}


def _names(pipeline: Pipeline) -> list[HubName]:
    """Return what the steps take from a hub, at all points, each once.

    What else is wrong with the document is for `plan` to say: this machine may lack what steps
    need.
    """
    request, memory = pipeline.plan_request(None, {}), Memory()
    found: set[HubName] = set()
    for number in range(max(1, len(request.points))):
        drafts = check_steps(request.at(number) if request.points else request, memory)
        for step, handler in drafts.handlers.items():
            if step in drafts.views:
                found.update(names_of(handler, drafts.views[step], drafts.references[step]))
    return sorted(found)


def _fetch(
    name: HubName, folder: Path, safe_only: bool
) -> tuple[HubName, hub_backend.Fetched | NexaError]:
    print(f"fetching {name}", file=sys.stderr)
    try:
        return name, hub_backend.fetch(name, folder, safe_only=safe_only)
    except UserError:
        raise
    except NexaError as error:
        return name, error
