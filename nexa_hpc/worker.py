"""Inside an element: makes one claimed attempt at an instance and records how it ended.

Reads the recorded, resolved step and never composes. Checks that upstream results are there and
that inputs are what was planned, runs the handler, publishes, writes the end record. Called by the
local scheduler in-process, or run as a process of its own; standard library alone on the way to the
handler.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from nexa_hpc.core import atomic, checkpoints, records
from nexa_hpc.core import meeting as meetings
from nexa_hpc.core.access import PRIVATE
from nexa_hpc.core.endpoints import blaming_servers, endpoints_of
from nexa_hpc.core.environments import hub_variables, needs_process, variables_set
from nexa_hpc.core.failures import explain, print_failure
from nexa_hpc.core.handlers import Handler, Progress, Task, find_handler
from nexa_hpc.core.instances import Instance
from nexa_hpc.core.leftovers import TAG_VARIABLE, attempt_tag
from nexa_hpc.core.preconditions import (
    check_code,
    check_inputs,
    check_params,
    check_upstream,
)
from nexa_hpc.core.progress_file import progress_writer
from nexa_hpc.core.publishing import Publication, discard_left_behind
from nexa_hpc.core.ranks import ALONE, RANKS_VARIABLE, Ranks
from nexa_hpc.core.reading import list_names
from nexa_hpc.core.redaction import Redactor
from nexa_hpc.core.results import find_result
from nexa_hpc.core.room import room_told
from nexa_hpc.core.runs import Run, open_run
from nexa_hpc.core.servers import Servers
from nexa_hpc.core.snapshots import source_root, task_as_submitted
from nexa_hpc.core.states import State
from nexa_hpc.core.tasks import make_task
from nexa_hpc.core.together import run_following, run_leading
from nexa_hpc.errors import Interrupted
from nexa_hpc.schedulers.tether import die_with_parent, tell_progress

STOPPED = "stopped from outside"
LEAVES_OPEN_VARIABLE = "NEXA_HPC_LEAVES_OPEN"
"""Tells a worker process that whoever started it records start and stop."""


def execute(
    run: Run,
    step: str,
    attempt: int,
    on_progress: Callable[[Progress], None] = lambda _: None,
    *,
    begins: bool = True,
    leaves_open: bool = False,
    ranks: Ranks = ALONE,
    just_looked: bool = False,
) -> State:
    """Make attempt `attempt` at `step` of `run`, which the caller has claimed, and return its end.

    What the handler raises is recorded, printed to standard error, and ends the attempt as FAILED;
    Ctrl-C and `cancel` end it as CANCELLED and raise Interrupted. The caller has recorded its start
    unless it `begins`; `leaves_open` leaves it to the caller to record what stopped it; the caller
    who `just_looked` found no result, and then claimed the attempt.

    With several `ranks` this is rank 0, which alone records and publishes; `assist` is for others.
    """
    instance = run.instances[step]
    folder = run.paths.records(instance.key)
    if begins:
        records.start(folder, attempt, records.here())
    # Of a first attempt claimed a moment ago, nobody can have been quicker with the result.
    look_again = not just_looked or attempt > 1
    try:
        state = _attempt(run, instance, attempt, on_progress, ranks, look_again=look_again)
    except (KeyboardInterrupt, Interrupted) as error:
        if not leaves_open:
            records.end(folder, attempt, State.CANCELLED, message=STOPPED)
        raise Interrupted(f"step '{step}' was stopped") from error
    except BaseException as error:
        _record_failure(run, instance, attempt, error)
        if not isinstance(error, Exception | SystemExit):
            raise
        return State.FAILED
    if records.end(folder, attempt, state, durable=instance.effect):
        _remove_work(run, instance, attempt)
    return state


def assist(run: Run, step: str, attempt: int, ranks: Ranks) -> State:
    """Do the part of another rank than 0 in attempt `attempt`, and return how the attempt ended.

    Waits for rank 0 to begin, tells it how this part ended, and stays until the attempt is over.
    Nothing is recorded. What the handler raises is printed; Interrupted passes.
    """
    instance = run.instances[step]
    folder = run.paths.records(instance.key)
    meeting = meetings.Meeting(run.paths.work_of(instance.key) / str(attempt), ranks)
    end = meetings.DONE

    def is_over() -> bool:
        return records.has_ended(folder, attempt)

    try:
        told = meeting.wait_for_begin(is_over)
        if told is not None:
            _take_part(run, instance, attempt, told)
            meeting.tell(end)
    except (KeyboardInterrupt, Interrupted) as error:
        meeting.tell(meetings.STOPPED)
        meeting.linger(is_over, meetings.STOPPED)
        raise Interrupted(f"step '{step}' was stopped") from error
    except (Exception, SystemExit) as error:
        end = meetings.FAILED
        reason, message = explain(error, Redactor(run.secrets))
        print_failure(error, message)
        meeting.tell(end, reason.value, message)
    try:
        meeting.linger(is_over, end)
    except KeyboardInterrupt as error:
        # As a rule because rank 0 has ended, and srun ends the others after it.
        if not is_over():
            raise Interrupted(f"step '{step}' was stopped") from error
    return records.ended_state(folder, attempt) or State.FAILED


def _take_part(run: Run, instance: Instance, attempt: int, told: Mapping[str, Any]) -> None:
    task = make_task(instance, run.instances, run.paths, attempt=attempt, **told)
    task = task_as_submitted(run, instance, task)
    folder = run.paths.records(instance.key)
    tag = {TAG_VARIABLE: attempt_tag(folder, attempt)}
    with (
        variables_set({**_variables(run, instance), **tag}),
        room_told(run.paths.store, run.paths.work, run.paths.state),
    ):
        handler = find_handler(instance.uses, source_root(run, instance))
        run_following(handler, task, lambda: records.has_ended(folder, attempt))


def _variables(run: Run, instance: Instance) -> dict[str, str]:
    """Return what the step finds set: what it declares, and where what was fetched lies."""
    return {**hub_variables(run.paths.hub, instance.scheduler), **instance.env.get("variables", {})}


def _attempt(
    run: Run,
    instance: Instance,
    attempt: int,
    on_progress: Callable[[Progress], None],
    ranks: Ranks,
    *,
    look_again: bool,
) -> State:
    if look_again and find_result(instance, run.paths).artifact is not None:
        return State.COMPLETED
    check_upstream(run, instance)
    check_inputs(run, instance)
    handler = find_handler(instance.uses, source_root(run, instance))
    check_code(run, instance)
    if needs_process(instance.env):
        check_params(run, instance, handler)
    if attempt > 1:
        _remove_half_written(run, instance, attempt)
    with ExitStack() as stack:
        publications = {
            name: Publication.begin(place)
            for name, place in instance.artifact_paths(run.paths).items()
        }
        for publication in publications.values():
            stack.callback(publication.discard)
        task = _task(run, instance, attempt, publications, on_progress, ranks)
        servers = Servers(run.paths.servers)
        stack.enter_context(blaming_servers(servers, list(task.endpoints.values())))
        tag = {TAG_VARIABLE: attempt_tag(run.paths.records(instance.key), attempt)}
        stack.enter_context(variables_set({**_variables(run, instance), **tag}))
        stack.enter_context(room_told(run.paths.store, run.paths.work, run.paths.state))
        if handler.effect:
            return _bring_about(handler, task)
        if ranks.size > 1:
            run_leading(handler, task, lambda error: _record_failure(run, instance, attempt, error))
        else:
            handler.run(task)
        check_inputs(run, instance)
        for name, publication in publications.items():
            _publish(run, instance, attempt, name, publication)
    return State.COMPLETED


def _remove_half_written(run: Run, instance: Instance, attempt: int) -> None:
    """Remove what earlier attempts at this key had written of their outputs; all have ended.

    Nothing of a later attempt is among them, however late we come to removing: they are listed
    before we look whether our own was closed, and the next is claimed after that.
    """
    left = [
        (place.parent / name, place)
        for place in instance.artifact_paths(run.paths).values()
        for name in list_names(place.parent)
        if name.startswith(f"{place.name}.tmp.")
    ]
    if not records.has_ended(run.paths.records(instance.key), attempt):
        for folder, destination in left:
            discard_left_behind(folder, destination)


def _remove_work(run: Run, instance: Instance, attempt: int) -> None:
    """Remove the work folders of this attempt and of those before it, never of a later one."""
    home = run.paths.work_of(instance.key)
    for number in range(1, attempt + 1):
        atomic.remove_tree(home / str(number))
    atomic.remove_folder_if_empty(home)


def _bring_about(handler: Handler, task: Task) -> State:
    held = handler.holds(task)
    if held is not None:
        print(f"nothing to do: {held}")
        return State.SKIPPED
    handler.run(task)
    return State.COMPLETED


def _task(
    run: Run,
    instance: Instance,
    attempt: int,
    publications: Mapping[str, Publication],
    on_progress: Callable[[Progress], None],
    ranks: Ranks,
) -> Task:
    work = run.paths.work_of(instance.key)
    work_dir = work / str(attempt)
    atomic.make_folder(work_dir, PRIVATE)
    earlier = [work / str(number) for number in range(attempt - 1, 0, -1)]
    task = make_task(
        instance,
        run.instances,
        run.paths,
        attempt=attempt,
        outputs={name: publication.folder for name, publication in publications.items()},
        work_dir=work_dir,
        resume=checkpoints.newest(earlier),
        on_progress=on_progress,
        ranks=ranks,
        endpoints=endpoints_of(instance, run.instances, run.paths),
    )
    return task_as_submitted(run, instance, task)


def _publish(
    run: Run, instance: Instance, attempt: int, output: str, publication: Publication
) -> None:
    publication.publish(
        kind=instance.kind,
        inputs=instance.sources,
        labels=instance.labels,
        step_key=instance.key,
        key_document=instance.document,
        uri=instance.outputs[output] or f"{run.pipeline}/{instance.step}",
        extra={
            "made_by": {
                "pipeline": run.pipeline,
                "run": run.id,
                "step": instance.step,
                "attempt": attempt,
                "user": run.request["user"],
                "host": os.uname().nodename,
            },
            "resources": instance.resources,
        },
    )


def _record_failure(run: Run, instance: Instance, attempt: int, error: BaseException) -> None:
    reason, message = explain(error, Redactor(run.secrets))
    print_failure(error, message)
    folder = run.paths.records(instance.key)
    records.end(folder, attempt, State.FAILED, reason=reason, message=message)


def main() -> None:
    """`python -m nexa_hpc.worker REF`: make one attempt in this process, and exit by how it ended.

    Exit code 0 when the step has its result, 1 when it failed, 130 when it was stopped.
    """
    folder, step, attempt = sys.argv[1].rsplit("#", 2)
    leaves_open = os.environ.pop(LEAVES_OPEN_VARIABLE, None) is not None
    ranks = Ranks.decode(os.environ.pop(RANKS_VARIABLE, None))
    die_with_parent()
    stop_on_sigterm(once=leaves_open)
    run = open_run(Path(folder))
    try:
        if ranks.rank:
            state = assist(run, step, int(attempt), ranks)
        else:
            state = execute(
                run,
                step,
                int(attempt),
                _teller(run, step, int(attempt), in_job=leaves_open),
                begins=not leaves_open,
                leaves_open=leaves_open,
                ranks=ranks,
            )
        code = 0 if state.succeeded else 1
    except Interrupted as error:
        code = error.exit_code
    if ranks.size > 1:
        # What connects the ranks may wait, as Python takes it apart, for peers that have gone.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _teller(run: Run, step: str, attempt: int, *, in_job: bool) -> Callable[[Progress], None]:
    return progress_writer(run.place.progress(step, attempt)) if in_job else tell_progress()


def stop_on_sigterm(*, once: bool) -> None:
    """Take SIGTERM for Ctrl-C; with `once`, later ones are passed over.

    Slurm sends it to all processes of a job step, and the element to this one as well: the second
    is not the word of an impatient person.
    """

    def interrupt(signum: int, frame: object) -> None:
        if once:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


if __name__ == "__main__":
    main()
