"""How a run ended, told to a person: the counts, and what to do next about each failure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from nexa_hpc.cli.status import summary
from nexa_hpc.core.quoting import printable_lines
from nexa_hpc.core.runs import Run
from nexa_hpc.core.states import Standing, State

_RESULTS_SHOWN = 20
_FAILURES_SHOWN = 5
_TAIL_LINES = 12
_TAIL_BYTES = 16_384


def print_outcome(run: Run, standings: Mapping[str, Standing]) -> None:
    """Print how `run` ended, its results, and what to do about each failed step."""
    failed = [(s, standing) for s, standing in standings.items() if standing.state is State.FAILED]
    for step, standing in failed[:_FAILURES_SHOWN]:
        print_failure(run, step, standing)
    if len(failed) > _FAILURES_SHOWN:
        print(f"and {len(failed) - _FAILURES_SHOWN} more failed: nexa-hpc status {run.id}")
    print(f"run {run.id}: {summary(standings)}")
    if any(standing.state in (State.SUBMITTED, State.RUNNING) for standing in standings.values()):
        print(f"follow it:  nexa-hpc status {run.id}    (--watch; or resume {run.id} --wait)")
        print(f"stop it:    nexa-hpc cancel {run.id}")
    if all(standing.state.succeeded for standing in standings.values()):
        _print_results(run)


def print_failure(run: Run, step: str, standing: Standing) -> None:
    """Print why a step failed, the end of its log, and the commands that go on from there."""
    print(f"\nstep '{step}' FAILED ({standing.reason}): {printable_lines(standing.message)}")
    if standing.log is not None:
        log = run.paths.state / standing.log
        for line in log_tail(log, _TAIL_LINES):
            print(f"  | {line}")
        print(f"log:        {run.paths.relative(log)}")
    print(f"try again:  nexa-hpc pipeline resume {run.id}")
    print(
        f"recompute:  nexa-hpc pipeline rerun {run.request.get('file') or run.id} --from {step}\n"
    )


def log_tail(log: Path, lines: int) -> list[str]:
    """Return the last `lines` lines of `log`; empty when there is none."""
    try:
        with log.open("rb") as stream:
            stream.seek(0, 2)
            stream.seek(max(0, stream.tell() - _TAIL_BYTES))
            text = stream.read().decode(errors="replace")
    except FileNotFoundError:
        return []
    return text.splitlines()[-lines:]


def _print_results(run: Run) -> None:
    if run.points:
        views = run.paths.relative(run.paths.point_view(run.pipeline, "POINT"))
        print(f"the table:  nexa-hpc sweep show {run.id}")
        print(f"results:    {views}")
        return
    declared = [(i.step, out) for i in run.instances.values() for out in i.outputs.values() if out]
    for step, out in declared[:_RESULTS_SHOWN]:
        print(f"  {step}: {out}")
    if len(declared) > _RESULTS_SHOWN:
        print(f"  and {len(declared) - _RESULTS_SHOWN} more")
