"""One session of a multirun: from Hydra's points to a recorded run that is driven, and back.

`open_session` is the launcher's `setup`, `launch` its `launch`. Each batch is a run of its own, and
all points of a multirun have their keys from it; what an earlier session finished, or has under
way, is found by these keys, as in any run. Called by the plugin alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from hydra.errors import CompactHydraException

from nexa_hpc import driving
from nexa_hpc.core.artifacts import look
from nexa_hpc.core.instances import Instance
from nexa_hpc.core.paths import find_root
from nexa_hpc.core.room import no_room
from nexa_hpc.core.states import Standing, State
from nexa_hpc.errors import Interrupted, NexaError, UserError
from nexa_hpc.handover import HandedOver
from nexa_hpc.hydra_runs import returns
from nexa_hpc.hydra_runs.options import Options
from nexa_hpc.hydra_runs.places import NAME, Place
from nexa_hpc.hydra_runs.points import Multirun, Point
from nexa_hpc.hydra_runs.recording import compose, record, set_sweep_dir
from nexa_hpc.observing import Observer
from nexa_hpc.schedulers import refuse_unknown
from nexa_hpc.schedulers.slurm.terms import Terms
from nexa_hpc.slurm_terms import read_terms

if TYPE_CHECKING:
    from hydra.types import HydraContext, TaskFunction
    from omegaconf import DictConfig

log = logging.getLogger(__name__)
_BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


@dataclass
class Session:
    """What one call of the app knows of its multirun."""

    given: Mapping[str, Any]
    """The fields of `hydra.launcher`."""
    hydra_context: HydraContext
    task_function: TaskFunction
    config: DictConfig
    place: Place
    multirun: Multirun

    @property
    def is_detached(self) -> bool:
        """Whether nothing is waited for."""
        return bool(self.given["detach"])

    @property
    def again(self) -> str:
        """What to say on the command line to go on with this multirun."""
        return f"hydra.launcher.resume={self.place.sweep}"


def open_session(
    given: Mapping[str, Any],
    hydra_context: HydraContext,
    task_function: TaskFunction,
    config: DictConfig,
) -> Session:
    """Return a session, with `config` pointing at the earlier sweep's folder where one is resumed.

    Sweepers write their own files where `config` says. Raises Hydra's exception, which it prints
    without a traceback, for what cannot be.
    """
    with _told_to_hydra(None):
        _refuse_detached_sweeper(given, config)
        if given["resume"] is None:
            place = Place(Path(str(config.hydra.sweep.dir)).absolute())
            return Session(given, hydra_context, task_function, config, place, Multirun.new())
        place = Place(Path(given["resume"]).expanduser().absolute())
        multirun = _to_resume(place)
    set_sweep_dir(config, place)
    return Session(given, hydra_context, task_function, config, place, multirun)


def _refuse_detached_sweeper(given: Mapping[str, Any], config: DictConfig) -> None:
    sweeper = str(config.hydra.sweeper._target_)
    if given["detach"] and sweeper != _BASIC_SWEEPER:
        raise UserError(
            f"hydra.launcher.detach: the sweeper {sweeper.rpartition('.')[2]} chooses its next "
            "points by the results of earlier ones, so they must be waited for",
            hint="drop hydra.launcher.detach, or the sweeper",
        )


def _to_resume(place: Place) -> Multirun:
    told = f"hydra.launcher.resume={place.sweep}"
    if not place.sweep.is_dir():
        raise UserError(f"{told}: no such folder", hint="name the folder of the multirun to resume")
    if not place.root.is_dir() and not _was_begun(place):
        raise UserError(
            f"{told}: nothing was submitted there by hydra/launcher=nexa_slurm",
            hint=f"name a folder that holds {NAME}, or leave `resume` out to begin anew",
        )
    # One that was killed before it had submitted anything has no points yet.
    return Multirun.newest(place.paths) or Multirun.new()


def _was_begun(place: Place) -> bool:
    """Return whether a sweeper had begun a multirun of ours there, and no more: it notes this."""
    noted = place.sweep / "multirun.yaml"
    return noted.is_file() and "hydra_plugins.nexa_launcher." in noted.read_text(errors="replace")


def launch(
    session: Session, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
) -> list[JobReturn]:
    """Submit what of a batch has no result yet; return a JobReturn for each point, in order.

    With `detach` those of points under way hold a `returns.DetachedJob`. Raises Hydra's exception
    where nothing could be submitted; Ctrl-C leaves the jobs to Slurm, and ends this process.
    """
    with _told_to_hydra(session):
        points = session.multirun.points(job_overrides, initial_job_idx)
        if not points:
            return []
        missing = [p for p in points if look(session.place.paths.artifact(p.key)).artifact is None]
        standings: Mapping[str, Standing] = {}
        configs: dict[str, DictConfig] = {}
        asked = _asked(session) if missing else None
        _tell(session, points, missing)
        if asked is not None:
            _make_sweep_folder(session)
            configs = {point.key: compose(session, point) for point in missing}
            run = record(session, points, configs, *asked)
            standings = driving.drive(run, _Log(), wait=not session.is_detached)
        return _collect(session, points, configs, standings)


def _make_sweep_folder(session: Session) -> None:
    sweep = session.place.sweep
    sweep.mkdir(parents=True, exist_ok=True)
    mode = session.config.hydra.sweep.get("mode")
    if mode is not None:
        sweep.chmod(int(str(mode), 8))
    session.place.make()


def _tell(session: Session, points: Sequence[Point], missing: Sequence[Point]) -> None:
    lacking = set(missing)
    log.info("Launching %d jobs in Slurm, sweep folder: %s", len(missing), session.place.sweep)
    for point in points:
        done = "" if point in lacking else "    (done before)"
        log.info("\t#%d : %s%s", point.number, " ".join(filter_overrides(point.overrides)), done)
    if session.multirun.is_resumed and not session.multirun.matched:
        log.warning(
            "none of these points is in the multirun that is resumed: is it the same command, and "
            "the sampler seeded?"
        )


def _asked(session: Session) -> tuple[Options, Terms]:
    refuse_unknown("slurm")
    if any(character in str(session.place.sweep) for character in "%\\"):
        raise UserError(
            f"hydra.sweep.dir={session.place.sweep}: Slurm gives % and \\ in names a meaning",
            hint="choose a hydra.sweep.dir without them",
        )
    terms = read_terms(find_root(Path.cwd()), {})
    return Options.of(session.given, terms), terms


def _collect(
    session: Session,
    points: Sequence[Point],
    configs: Mapping[str, DictConfig],
    standings: Mapping[str, Standing],
) -> list[JobReturn]:
    paths, found, lost = session.place.paths, [], []
    for point in points:
        standing = standings.get(point.step, Standing(State.COMPLETED))
        if standing.state.succeeded:
            found.append(returns.stored(paths, point))
        elif not standing.state.settled:
            config, sweep = configs.get(point.key), session.place.sweep
            found.append(returns.detached(point, standing, config, sweep))
        else:
            found.append(returns.failed(paths, point, standing, configs.get(point.key)))
            lost.append(returns.told(paths, point, standing))
    if lost:
        log.error("%d of %d jobs failed:\n\t%s", len(lost), len(points), "\n\t".join(lost))
        log.error("to run these again, repeat the command with %s", session.again)
    elif any(r.status is JobStatus.COMPLETED for r in found) and session.is_detached:
        log.info("detached; to collect the results, repeat the command with %s", session.again)
        log.info("nexa-hpc --project %s status    shows the jobs", session.place.root)
    return found


class _Log(Observer):
    """Tells of jobs in Hydra's log."""

    def handed_over(self, done: HandedOver) -> None:
        """See `Observer`."""
        for job, batch in done.sheets:
            log.info("submitted job %s (%d jobs)", job, batch.width)

    def settled(self, instance: Instance, standing: Standing) -> None:
        """See `Observer`."""
        if standing.state is not State.SKIPPED:
            log.info("#%s %s", instance.params["number"], standing.state.value)


@contextmanager
def _told_to_hydra(session: Session | None) -> Iterator[None]:
    """Turn what goes wrong into Hydra's exception, which it prints without a traceback."""
    try:
        yield
    except Interrupted as error:
        _end(session, error)
    except NexaError as error:
        hint = error.hint
        if session is not None and (session.place.paths.state / "records").is_dir():
            hint = f"mend it, then repeat the command with {session.again}"
        told = f"error: {error}\nhint: {hint}" if hint else f"error: {error}"
        raise CompactHydraException(told) from None
    except OSError as error:
        raise CompactHydraException(f"error: {no_room(error) or error}") from error


def _end(session: Session | None, error: Interrupted) -> NoReturn:
    assert session is not None, "what is interrupted was driven"
    log.error("%s", error)
    log.error("to go on, repeat the command with %s", session.again)
    log.error("to end the jobs: nexa-hpc --project %s cancel", session.place.root)
    raise SystemExit(error.exit_code) from None
