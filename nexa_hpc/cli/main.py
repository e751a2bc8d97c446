"""The front door: `nexa-hpc`, its command groups, and the one place that prints errors.

Commands live one file a group and are imported when called; `--help` imports none of them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from nexa_hpc import __version__
from nexa_hpc.cli.lazy import LazyGroup, ReaderGone
from nexa_hpc.cli.output import discard_output
from nexa_hpc.errors import NexaError

VERBS = {
    "run": ("nexa_hpc.cli.run:run", "Run a pipeline; what is cached is skipped."),
    "plan": ("nexa_hpc.cli.run:plan", "Show what a run would do, and why."),
    "resume": ("nexa_hpc.cli.run:resume", "Go on with the newest run, as it was planned."),
    "rerun": ("nexa_hpc.cli.run:rerun", "Compute a step and all below it again."),
    "status": ("nexa_hpc.cli.status:status", "Show where a run stands."),
    "logs": ("nexa_hpc.cli.logs:logs", "Print a step's log; -f follows it."),
    "why": ("nexa_hpc.cli.why:why", "Explain why a step runs or is skipped, field by field."),
    "viz": ("nexa_hpc.cli.viz:viz", "Draw the graph: a tree, mermaid, dot or svg."),
    "cancel": ("nexa_hpc.cli.status:cancel", "Stop a run; what is finished stays."),
    "advance": ("nexa_hpc.cli.advance:advance", "Look after runs in Slurm's hands, once."),
    "list": ("nexa_hpc.cli.status:list_runs", "List the runs of this project."),
}
GROUPS = {
    "sweep": ("nexa_hpc.cli.sweep:group", "Sweeps: points, overrides, metrics, pictures."),
    "pipeline": ("nexa_hpc.cli.main:pipeline", "The same verbs, as `pipeline run` and so on."),
    "models": ("nexa_hpc.cli.models:group", "The model registry: versions and tags."),
    "serve": ("nexa_hpc.cli.serve:group", "Serve models: start, list, stop, logs, url, health."),
    "artifacts": ("nexa_hpc.cli.artifacts:group", "The store: list, verify, du, gc, export."),
}
SITE = {
    "config": ("nexa_hpc.cli.config:group", "What configuration comes to, and what to choose."),
    "fetch": ("nexa_hpc.cli.fetch:fetch", "Bring a pipeline's hub models and datasets here."),
    "env": ("nexa_hpc.cli.env:group", "Environments by name, for steps: create, list, check."),
    "cluster": ("nexa_hpc.cli.cluster:group", "The Slurm cluster: probe it, show what is known."),
    "doctor": ("nexa_hpc.cli.doctor:doctor", "Check this machine, its disks and its cluster."),
    "sbatch": ("nexa_hpc.cli.sbatch:sbatch", "Submit a script that runs a pipeline inside a job."),
}
EXIT_CODES = """\b
Exit codes:
  0    everything asked for is done
  1    a step failed
  2    a mistake in a document or an argument; nothing was written
  3    an artifact or a state file is missing, damaged, or not ours
  4    Slurm does not answer, or refuses; what is recorded stays
  130  stopped by Ctrl-C, SIGTERM or `cancel`

\b
Completion in your shell:
  eval "$(_NEXA_HPC_COMPLETE=bash_source nexa-hpc)"      (or zsh_source, fish_source)
"""


@click.group(
    cls=LazyGroup,
    table={**VERBS, **GROUPS, **SITE},
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=EXIT_CODES,
)
@click.option(
    "--project",
    type=click.Path(path_type=Path),
    help="The project root (default: the nearest folder above with .nexa_state or nexa.yaml).",
)
@click.version_option(__version__, prog_name="nexa-hpc")
@click.pass_context
def cli(ctx: click.Context, project: Path | None) -> None:
    """ML pipelines on a laptop or on Slurm: cached, atomic, resumable.

    \b
    Example:
      nexa-hpc run pipelines/general_e2e.yaml
      nexa-hpc status
    """
    # Imported here: `--help` needs no session.
    from nexa_hpc.cli.session import Session

    ctx.obj = Session(project)


@click.group(cls=LazyGroup, table=VERBS)
def pipeline() -> None:
    """Run pipelines and look after their runs.

    \b
    Example:
      nexa-hpc pipeline run pipelines/general_e2e.yaml

    Where a command takes [RUN], that is a pipeline file, a pipeline's name or a run id; without it,
    the project's newest run is meant.
    """


def main() -> None:
    """Run the command line and exit; every NexaError ends in `error:` and `hint:` lines here."""
    try:
        cli.main(prog_name="nexa-hpc", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        print("stopped", file=sys.stderr)
        sys.exit(130)
    except click.exceptions.Exit as exit_:
        sys.exit(exit_.exit_code)
    except NexaError as error:
        _print_error(error)
        sys.exit(error.exit_code)
    except OSError as error:
        told = _told(error)
        if told is None:
            raise
        _print_error(told)
        sys.exit(told.exit_code)
    except ReaderGone:
        discard_output()
        sys.exit(0)


def _told(error: OSError) -> NexaError | None:
    """Return `error` in words, where it is the disk's and no bug of ours."""
    # Imported here: `--help` needs none of the core.
    from nexa_hpc.core.room import no_room
    from nexa_hpc.core.sharing import not_permitted

    return no_room(error) or not_permitted(error)


def _print_error(error: NexaError) -> None:
    # Imported here: `--help` needs none of the core.
    from nexa_hpc.core.quoting import printable_lines

    for line in printable_lines(str(error)).split("\n"):
        print(f"error: {line}", file=sys.stderr)
    if error.hint:
        print(f"hint: {printable_lines(error.hint)}", file=sys.stderr)
