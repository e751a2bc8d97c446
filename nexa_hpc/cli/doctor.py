"""`doctor`: whether this machine, its disks and its cluster do what runs rely on."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import click

from nexa_hpc import __version__
from nexa_hpc.cli.session import Session
from nexa_hpc.compose.run_config import policy_of
from nexa_hpc.compose.site import site_config
from nexa_hpc.core.cluster import Cluster
from nexa_hpc.core.disk_checks import check_disk
from nexa_hpc.core.findings import Finding, Level, ok, problem
from nexa_hpc.core.quoting import printable_lines
from nexa_hpc.core.sharing import group_id, require_own
from nexa_hpc.core.support import pack
from nexa_hpc.errors import NexaError
from nexa_hpc.schedulers.slurm.checkup import check_slurm, has_slurm, known_cluster
from nexa_hpc.schedulers.slurm.node_trial import try_node

_CORE = ("click", "rich", "pyyaml", "pydantic", "submitit")
_EXTRA = ("torch", "transformers", "datasets", "peft", "accelerate", "scikit-learn")


@click.command()
@click.option(
    "--deep", is_flag=True, help="Submit one tiny job, too, to see what a compute node can do."
)
@click.option(
    "--wait-s",
    type=click.IntRange(min=1),
    default=120,
    show_default=True,
    help="How long to wait for that job, in seconds.",
)
@click.option(
    "--bundle",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Pack the findings and the newest run's records, without secrets, into this tar.gz.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
@click.pass_obj
def doctor(session: Session, deep: bool, wait_s: int, bundle: Path | None, as_json: bool) -> None:
    """Check this machine: Slurm, the disks of state and store, Python, and with --deep a node.

    Each finding is ok, a warning or a problem, with its remedy; problems end with exit code 1.
    Nothing stays behind. --bundle is for those who help: no values of environment variables, and no
    secrets, get into it.

    \b
    Example:
      nexa-hpc doctor
      nexa-hpc doctor --deep --bundle for-support.tar.gz
    """
    session.announce_root()
    findings = [*_software(), *_project(session), *check_slurm(session.root)]
    if deep and has_slurm():
        findings += _deep(session, wait_s)
    if bundle is not None:
        packed = pack(bundle, findings, session.root, session.paths)
        print(f"packed {packed} files into {bundle}", file=sys.stderr)
    if as_json:
        print(json.dumps({"findings": [finding.to_json() for finding in findings]}))
    else:
        _print(findings, asked_nodes=deep or not has_slurm())
    if any(finding.level is Level.PROBLEM for finding in findings):
        sys.exit(1)


def _software() -> list[Finding]:
    place = Path(sys.modules["nexa_hpc"].__file__ or "").parent
    python = f"{platform.python_version()}, {sys.executable}; nexa_hpc {__version__}, {place}"
    core, missing = _versions(_CORE)
    extra, _ = _versions(_EXTRA)
    have = ok("libraries", ", ".join([*core, *extra]))
    if missing:
        have = problem("libraries", f"not installed: {', '.join(missing)}", "pip install nexa-hpc")
    return [ok("python", python), have]


def _versions(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return name and version of what is installed, and the names of what is not."""
    found, missing = [], []
    for name in names:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    return found, missing


def _project(session: Session) -> list[Finding]:
    """Return what is found of the project's settings and of the disks that it names."""
    try:
        paths, gid = session.paths, group_id(session.settings.group)
        require_own(paths.state, "the state folder")
    except NexaError as error:
        return [problem("project", str(error), error.hint or "mend nexa.yaml")]
    found = check_disk("state", paths.state, None)
    return [*found, *check_disk("store", paths.store, gid)]


def _deep(session: Session, wait_s: int) -> list[Finding]:
    try:
        cluster = known_cluster(session.root) or Cluster(name="unknown")
        policy = policy_of(site_config(session.root))
        places = {"state": session.paths.state, "store": session.paths.store}
        return try_node(places, cluster, policy, wait_s)
    except (NexaError, OSError) as error:
        return [problem("node: job", str(error), "mend what is said above, and ask again")]


def _print(findings: list[Finding], *, asked_nodes: bool) -> None:
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        head = f"{finding.level.value:<8}{finding.name:<{width}}  "
        message = printable_lines(finding.message).replace("\n", "\n" + " " * len(head))
        print(f"{head}{message}")
        if finding.remedy is not None:
            print(f"{'':<{len(head)}}→ {printable_lines(finding.remedy)}")
    counts = Counter(finding.level for finding in findings)
    told = [f"{counts[level]} {level.value}" for level in reversed(Level) if counts[level]]
    print(", ".join(told))
    if not asked_nodes:
        print(
            "not asked: what a compute node sees, and whether it may submit jobs; "
            "`nexa-hpc doctor --deep` submits one tiny job to find out"
        )
