"""A run as the Python interface shows it: driven, resumed, asked for results.

Called by `pipeline` and the command line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nexa_hpc import driving
from nexa_hpc.core.artifacts import open_artifact
from nexa_hpc.core.best import METRICS
from nexa_hpc.core.instances import Instance
from nexa_hpc.core.parts import part_to_resume
from nexa_hpc.core.reading import read_json_or_none
from nexa_hpc.core.rounds import Part
from nexa_hpc.core.runs import Run, begin_round
from nexa_hpc.core.standings import fold_all
from nexa_hpc.core.states import Standing
from nexa_hpc.core.sweep_table import read_results
from nexa_hpc.errors import UnknownNameError, nearest
from nexa_hpc.observing import Observer
from nexa_hpc.schedulers.login import obey_login_policy
from nexa_hpc.schedulers.requeued import stay_cancelled
from nexa_hpc.schedulers.slurm.watching import observer_of


class Results(list[dict[str, Any]]):
    """A row for each point of a run: its label, overrides, status and metrics, as `sweep show`."""

    def __init__(self, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
        super().__init__({column: row[column] for column in columns} for row in rows)
        self.columns = tuple(columns)
        """The keys of each row, in their order."""

    def to_pandas(self) -> Any:
        """Return the rows as a pandas DataFrame; raises UserError where pandas isn't installed."""
        # Imported here: a run needs it only when it is asked for.
        from nexa_hpc.backends.frames import to_pandas

        return to_pandas(self.columns, self)


class PipelineRun:
    """A run and what became of it."""

    def __init__(
        self, run: Run, standings: Mapping[str, Standing] | None = None, part: Part | None = None
    ) -> None:
        self._run = run
        self._part = part
        self.standings = self.status() if standings is None else standings
        """Step id -> where it stood when the run was last driven, or submitted."""

    @property
    def id(self) -> str:
        """The run's id, as the command line takes it."""
        return self._run.id

    def status(self) -> dict[str, Standing]:
        """Return step id -> what is true of it now."""
        return fold_all(self._run, observer_of(self._run))

    @property
    def asked(self) -> Mapping[str, Standing]:
        """Of `standings` those of the part that was resumed, where it was not all of the run."""
        if self._part is None:
            return self.standings
        return {s: found for s, found in self.standings.items() if s in self._part.chosen}

    @property
    def succeeded(self) -> bool:
        """Whether every step ended COMPLETED or SKIPPED."""
        return all(standing.state.succeeded for standing in self.standings.values())

    def result(self, step: str, output: str | None = None) -> Path:
        """Return the folder of a step's artifact, in the store.

        Raises UnknownNameError for a step or output that is not there, ArtifactError when there is
        no result.
        """
        places = self._instance(step).artifact_paths(self._run.paths)
        if not places:
            raise UnknownNameError(f"step '{step}' changes something elsewhere; it has no files")
        name = output or next(iter(places))
        if name not in places:
            raise UnknownNameError(f"step '{step}' has no output '{name}'" + nearest(name, places))
        return open_artifact(places[name]).path

    def metrics(self, step: str) -> dict[str, Any]:
        """Return what the step wrote to `metrics.json`; empty when it wrote none."""
        return read_json_or_none(self.result(step) / METRICS) or {}

    def results(self) -> Results:
        """Return a row for each point, a plain run's only one: what it overrides, where it stands,
        and as `step.metric` what its steps wrote to `metrics.json`; None where there is nothing.
        """
        table = read_results(self._run, self.status()).table
        return Results(table.rows, table.columns)

    def wait(self) -> PipelineRun:
        """Drive the run until every instance has settled, in Slurm as well; return the run.

        Nothing is done for what has settled. Raises as `driving.drive` does.
        """
        self.standings = driving.drive(self._run, Observer(), wait=True)
        return self

    def _instance(self, step: str) -> Instance:
        if step not in self._run.instances:
            raise UnknownNameError(f"no step '{step}'" + nearest(step, self._run.instances))
        return self._run.instances[step]


def drive(
    run: Run, observer: Observer | None = None, jobs: int = 1, *, wait: bool = True
) -> PipelineRun:
    """Drive a recorded run to its end; without `wait`, until all that is left is Slurm's."""
    standings = driving.drive(run, observer or Observer(), jobs, wait=wait)
    return PipelineRun(run, standings)


def resume(
    run: Run,
    observer: Observer | None = None,
    jobs: int = 1,
    *,
    wait: bool = True,
    points: Sequence[str] = (),
    step: str | None = None,
) -> PipelineRun:
    """Begin another round of a recorded run, with its recorded plan, and drive it to its end.

    With `points` or a `step`, only those go on, with what they need: of the rest a failure stands,
    and what does not live is not started until a round that names it, or all. Raises
    UnknownNameError, before anything is written, for what the run does not have.
    """
    stay_cancelled(run)
    standings = fold_all(run, observer_of(run)) if points or step is not None else fold_all(run)
    part = part_to_resume(run, standings, points, step)
    obey_login_policy(run.paths.root, _without_result(run, standings, part))
    driving.close_ended(run)
    begin_round(run, part)
    return PipelineRun(run, drive(run, observer, jobs, wait=wait).standings, part)


def _without_result(
    run: Run, standings: Mapping[str, Standing], part: Part | None
) -> Iterator[Instance]:
    for step, instance in run.instances.items():
        if not standings[step].state.succeeded and (part is None or step in part.chosen):
            yield instance
