"""Inside an element: makes one claimed attempt at an instance and records how it ended.

Reads the recorded, resolved step and never composes. Checks that upstream results are there and
that inputs are what was planned, runs the handler, publishes, writes the end record. Called by the
local scheduler in-process, or run as a process of its own; standard library alone on the way to the
handler.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from nexa_hpc.core import atomic, checkpoints, records
from nexa_hpc.core.access import PRIVATE
from nexa_hpc.core.artifacts import look, sha256_file
from nexa_hpc.core.digests import Digester, signature
from nexa_hpc.core.handlers import Handler, Progress, Task, find_handler
from nexa_hpc.core.instances import Instance
from nexa_hpc.core.leftovers import TAG_VARIABLE, attempt_tag
from nexa_hpc.core.publishing import Publication, discard_left_behind
from nexa_hpc.core.reading import list_names
from nexa_hpc.core.redaction import Redactor
from nexa_hpc.core.results import find_result
from nexa_hpc.core.room import no_room, room_told
from nexa_hpc.core.runs import Run, open_run
from nexa_hpc.core.states import Reason, State
from nexa_hpc.core.tasks import make_task, step_path
from nexa_hpc.errors import BlockedError, InputChangedError, Interrupted, NexaError, StepError
from nexa_hpc.schedulers.base import PROGRESS_VARIABLE

STOPPED = "stopped from outside"
_MESSAGE_CHARACTERS = 600


def execute(
    run: Run, step: str, attempt: int, on_progress: Callable[[Progress], None] = lambda _: None
) -> State:
    """Make attempt `attempt` at `step` of `run`, which the caller has claimed, and return its end.

    What the handler raises is recorded, printed to standard error, and ends the attempt as FAILED;
    Ctrl-C and `cancel` end it as CANCELLED and raise Interrupted.
    """
    instance = run.instances[step]
    folder = run.paths.records(instance.key)
    records.start(folder, attempt, {"host": os.uname().nodename, "pid": os.getpid()})
    try:
        state = _attempt(run, instance, attempt, on_progress)
    except (KeyboardInterrupt, Interrupted) as error:
        records.end(folder, attempt, State.CANCELLED, message=STOPPED)
        raise Interrupted(f"step '{step}' was stopped") from error
    except BaseException as error:
        reason, message = _explain(error, Redactor(run.secrets))
        _print_failure(error, message)
        records.end(folder, attempt, State.FAILED, reason=reason, message=message)
        if not isinstance(error, Exception | SystemExit):
            raise
        return State.FAILED
    if records.end(folder, attempt, state):
        _remove_work(run, instance, attempt)
    return state


def _attempt(
    run: Run, instance: Instance, attempt: int, on_progress: Callable[[Progress], None]
) -> State:
    if find_result(instance, run.paths).artifact is not None:
        return State.COMPLETED
    _check_upstream(run, instance)
    _check_inputs(instance)
    handler = find_handler(instance.uses, run.paths.root)
    _check_code(run, instance)
    if attempt > 1:
        _remove_half_written(run, instance, attempt)
    with ExitStack() as stack:
        publications = {
            name: Publication.begin(place)
            for name, place in instance.artifact_paths(run.paths).items()
        }
        for publication in publications.values():
            stack.callback(publication.discard)
        task = _task(run, instance, attempt, publications, on_progress)
        tag = {TAG_VARIABLE: attempt_tag(run.paths.records(instance.key), attempt)}
        stack.enter_context(_variables({**instance.env.get("variables", {}), **tag}))
        stack.enter_context(room_told(run.paths.store, run.paths.work, run.paths.state))
        if handler.effect:
            return _bring_about(handler, task)
        handler.run(task)
        _check_inputs(instance)
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
) -> Task:
    work = run.paths.work_of(instance.key)
    work_dir = work / str(attempt)
    atomic.make_folder(work_dir, PRIVATE)
    earlier = [work / str(number) for number in range(attempt - 1, 0, -1)]
    return make_task(
        instance,
        run.instances,
        run.paths,
        attempt=attempt,
        outputs={name: publication.folder for name, publication in publications.items()},
        work_dir=work_dir,
        resume=checkpoints.newest(earlier),
        on_progress=on_progress,
    )


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


def _check_upstream(run: Run, instance: Instance) -> None:
    """Raise BlockedError unless every result that the inputs name is there, whole."""
    for name, handed in instance.inputs.items():
        if "step" not in handed:
            continue
        folder = step_path({**handed, "below": ""}, run.instances, run.paths)
        if look(folder).artifact is None:
            raise BlockedError(f"input {name}: step '{handed['step']}' has no result")
        path = step_path(handed, run.instances, run.paths)
        if not path.exists():
            raise StepError(f"input {name}: step '{handed['step']}' made no {handed['below']}")


def _check_inputs(instance: Instance) -> None:
    """Raise InputChangedError unless files and folders are as they were at planning."""
    for name, handed in instance.inputs.items():
        expected = handed.get("signature")
        if expected is None:
            continue
        try:
            found = signature(Path(handed["path"]))
        except OSError:
            found = "gone"
        if found != expected:
            raise InputChangedError(
                f"input {name} ({handed['path']}) changed after planning; nothing was published",
                hint="run the pipeline again: it will plan with the new content",
            )


def _check_code(run: Run, instance: Instance) -> None:
    """Raise InputChangedError unless the source files in the key are as they were at planning."""
    for name, expected in instance.document["code"].items():
        path = run.paths.root / name
        try:
            found = sha256_file(path) if path.is_file() else Digester().digest(path).sha256
        except OSError:
            found = "gone"
        if found != expected:
            raise InputChangedError(
                f"code {name} changed after planning",
                hint="run the pipeline again: it will plan with the new code",
            )


@contextmanager
def _variables(variables: Mapping[str, str]) -> Iterator[None]:
    saved = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in saved.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _explain(error: BaseException, redactor: Redactor) -> tuple[Reason, str]:
    if isinstance(error, MemoryError):
        return Reason.OUT_OF_MEMORY, "MemoryError: the process ran out of memory"
    error = no_room(error) or error
    reason = Reason(error.reason) if isinstance(error, StepError) else Reason.EXCEPTION
    text = str(error) if isinstance(error, NexaError) else f"{type(error).__name__}: {error}"
    hint = getattr(error, "hint", None)
    # Redacted before it is cut: a part of a secret is not found any more.
    return reason, redactor.text(f"{text} ({hint})" if hint else text)[:_MESSAGE_CHARACTERS]


def _print_failure(error: BaseException, message: str) -> None:
    if isinstance(error, NexaError):
        print(f"error: {message}", file=sys.stderr)
    else:
        traceback.print_exception(error, file=sys.stderr)


def main() -> None:
    """`python -m nexa_hpc.worker REF`: make one attempt in this process, and exit by how it ended.

    Exit code 0 when the step has its result, 1 when it failed, 130 when it was stopped.
    """
    folder, step, attempt = sys.argv[1].rsplit("#", 2)
    _die_with_parent()
    signal.signal(signal.SIGTERM, _interrupt)
    run = open_run(Path(folder))
    try:
        state = execute(run, step, int(attempt), _tell_progress())
    except Interrupted as error:
        sys.exit(error.exit_code)
    sys.exit(0 if state.succeeded else 1)


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def _die_with_parent() -> None:
    """Have the kernel send SIGTERM when the driver dies, so that its workers save and end, too."""
    pr_set_pdeathsig = 1  # prctl(2); Linux alone
    try:
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
    except (OSError, AttributeError):
        return


def _tell_progress() -> Callable[[Progress], None]:
    """Return what hands progress to the driver, on the file descriptor that it named."""
    fd = os.environ.pop(PROGRESS_VARIABLE, None)
    if fd is None:
        return lambda _: None
    os.set_inheritable(int(fd), False)
    stream = os.fdopen(int(fd), "w", encoding="utf-8")

    def tell(progress: Progress) -> None:
        try:
            stream.write(json.dumps({**vars(progress), "metrics": dict(progress.metrics)}) + "\n")
            stream.flush()
        except OSError:
            return  # The driver has gone; the step goes on to its end.

    return tell


if __name__ == "__main__":
    main()
