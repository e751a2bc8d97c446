"""`sbatch`: a script of `sbatch_templates/`, its header filled, submitted or printed."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import click

from nexa_hpc.cli.session import Session
from nexa_hpc.compose.run_config import cluster_of, policy_of
from nexa_hpc.compose.site import site_config
from nexa_hpc.core.cluster import Cluster
from nexa_hpc.core.paths import find_root
from nexa_hpc.errors import UserError
from nexa_hpc.schedulers.slurm.here import this_cluster
from nexa_hpc.schedulers.slurm.scripts import submit_script
from nexa_hpc.schedulers.slurm.templates import find_template, options, render


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("name", metavar="TEMPLATE")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[ARGUMENTS]...")
@click.option(
    "-O",
    "--option",
    "given",
    multiple=True,
    metavar="NAME=VALUE",
    help="An option of sbatch, over the template's and the cluster's: -O time=8:00:00 -O gpus=1.",
)
@click.option("--print", "--dry-run", "only_print", is_flag=True, help="Print the script instead.")
@click.pass_obj
def sbatch(
    session: Session,
    name: str,
    file: Path,
    arguments: tuple[str, ...],
    given: tuple[str, ...],
    only_print: bool,
) -> None:
    """Submit TEMPLATE for the pipeline in FILE: `pipeline`, `allocation` or `multinode_train`.

    Partition, account, time and memory that the template leaves open are those of the cluster's
    file and the policy. ARGUMENTS are handed on to `nexa-hpc run`. Templates of your own lie in
    sbatch_templates/ of the project.

    \b
    Example:
      nexa-hpc sbatch pipeline pipelines/general_e2e.yaml
      nexa-hpc sbatch allocation pipelines/general_e2e.yaml --jobs 2 -O time=8:00:00 -O gpus=1
      nexa-hpc sbatch multinode_train my_pipeline.yaml --print
    """
    if not file.is_file():
        raise UserError(f"no such pipeline file: {file}")
    root = find_root(Path.cwd(), file, session.project)
    session.announce_root(root)
    template = find_template(root, name)
    cluster = cluster_here(root)
    filled, asked = options(cluster, policy_of(site_config(root)), given)
    python = Path(cluster.python or sys.executable)
    script = render(template, [_from(root, file), *arguments], filled, asked, python)
    if only_print:
        print(script, end="")
        return
    _require_command(python)
    job = submit_script(script, root)
    print(f"submitted job {job}")
    print(f"its log is in {root}; nexa-hpc status shows the run once it has begun", file=sys.stderr)


def cluster_here(root: Path) -> Cluster:
    """Return what is known of the cluster of this host, for the project at `root`."""
    name = this_cluster()
    return cluster_of(site_config(root), name) if name is not None else Cluster(name="unknown")


def _require_command(python: Path) -> None:
    """See that the script will find `nexa-hpc`, beside the interpreter or on our PATH."""
    path = os.pathsep.join([str(python.parent), os.environ.get("PATH", "")])
    if python.is_file() and shutil.which("nexa-hpc", path=path) is None:
        message = f"there is no `nexa-hpc` beside {python} nor on PATH; the job would not find it"
        raise UserError(message, hint=f"{python} -m pip install nexa-hpc")


def _from(root: Path, file: Path) -> str:
    """Return `file` as it is to be named in the project root."""
    path = file.resolve()
    return os.path.relpath(path, root) if path.is_relative_to(root) else str(path)
