"""Whether a step runs, and why, in words that `plan`, `run` and `why` all print.

Called by `planning` for each step in graph order; reads the store, the registry and earlier plans.
Standard library alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from nexa_hpc.core.endpoints import IDLE, is_kept
from nexa_hpc.core.handlers import Handler
from nexa_hpc.core.history import History
from nexa_hpc.core.instances import RUN, SKIP, Instance
from nexa_hpc.core.keys import Difference, differences
from nexa_hpc.core.paths import ProjectPaths
from nexa_hpc.core.reading import list_names
from nexa_hpc.core.records import read_attempts
from nexa_hpc.core.results import cached_words, find_result, is_sealed, lost_words
from nexa_hpc.core.states import State
from nexa_hpc.core.tasks import make_task
from nexa_hpc.errors import NexaError

_FIELDS_SHOWN = 3
_PARENTS_SHOWN = 3


class Decision(NamedTuple):
    """What to do with a step, and why."""

    action: str
    reason: str


class Decider:
    """Decides for the steps of one pipeline, in graph order."""

    def __init__(
        self,
        pipeline: str,
        paths: ProjectPaths,
        handlers: Mapping[str, Handler],
        *,
        glance: bool = False,
    ) -> None:
        """`glance`: a COMPLETE is enough, as whoever runs the plan looks at all results again."""
        self._glance = glance
        self._paths = paths
        self._handlers = handlers
        self._recorded: dict[str, frozenset[str]] = {}
        """Folder of records -> the keys in it: listed once, and not looked for one by one."""
        self._history = History(paths.pipeline(pipeline), paths)

    def decide(
        self,
        instance: Instance,
        above: Mapping[str, Instance],
        readers: Iterable[Instance] = (),
    ) -> Decision:
        """Decide for `instance`; `above` holds at least every instance it depends on, decided.

        `readers` are those of its server, where it serves.
        """
        if instance.serves and not is_kept(instance) and not self._any_runs(readers, above):
            return Decision(SKIP, IDLE)
        if instance.effect:
            return self._decide_effect(instance, above)
        if self._glance and is_sealed(instance, self._paths):
            return Decision(SKIP, "cached")
        finding = find_result(instance, self._paths)
        if finding.artifact is not None:
            return Decision(SKIP, cached_words(finding.artifact))
        return Decision(RUN, lost_words(finding) or self._why_new(instance, above))

    def _any_runs(self, readers: Iterable[Instance], above: Mapping[str, Instance]) -> bool:
        # An effect below is only told when all that is above it has been decided.
        return any(i.effect or self.decide(i, above).action == RUN for i in readers)

    def _decide_effect(self, instance: Instance, above: Mapping[str, Instance]) -> Decision:
        waiting = [parent for parent in instance.parents if above[parent].action == RUN]
        if waiting:
            more = len(waiting) - _PARENTS_SHOWN
            named = ", ".join(waiting[:_PARENTS_SHOWN])
            return Decision(RUN, f"after {named}" + (f" and {more} more" if more > 0 else ""))
        try:
            task = make_task(instance, {**above, instance.step: instance}, self._paths)
            held = self._handlers[instance.step_id].holds(task)
        except NexaError:
            # It cannot be told before it is tried; the step itself will say what is wrong.
            held = None
        return Decision(SKIP, f"holds: {held}") if held else Decision(RUN, "not done yet")

    def _why_new(self, instance: Instance, above: Mapping[str, Instance]) -> str:
        told = self._last_attempt(instance)
        if told is not None:
            return told
        last = self._history.last(instance.step, other_than=instance.key)
        if last is None:
            return "no result yet"
        changed = differences(last.document, instance.document)
        named = [in_words(difference, instance) for difference in changed]
        more = len(named) - _FIELDS_SHOWN
        return "; ".join(named[:_FIELDS_SHOWN]) + (f"; and {more} more" if more > 0 else "")

    def _last_attempt(self, instance: Instance) -> str | None:
        """Return how the newest attempt at this very key ended, if there was one."""
        folder = self._paths.records(instance.key)
        shard = str(folder.parent)
        if shard not in self._recorded:
            self._recorded[shard] = frozenset(list_names(folder.parent))
        attempts = read_attempts(folder) if folder.name in self._recorded[shard] else []
        if not attempts:
            return None
        run, end = attempts[-1].claim.get("run"), attempts[-1].end
        if end is None:
            return f"begun in {run}"
        words = {State.FAILED.value: "failed", State.CANCELLED.value: "was stopped"}
        word = words.get(end["state"])
        return f"{word} in {run}" if word is not None else None


def in_words(difference: Difference, instance: Instance) -> str:
    """Return `difference` as the user would say it: which upstream step, which file."""
    part, _, rest = difference.field.partition(".")
    if part == "inputs" and rest:
        # Names may hold dots; one that is an input no more stands alone.
        names = [name for name in instance.inputs if f"{rest}.".startswith(f"{name}.")]
        name = max(names, key=len, default=rest)
        handed = instance.inputs.get(name, {})
        if rest == f"{name}.step_key" and "step" in handed:
            return f"input {name}: step '{handed['step']}' has another result"
        if rest == f"{name}.server_key" and "server" in handed:
            return f"input {name}: step '{handed['server']}' serves something else"
        return f"input {name}: {difference.old or 'absent'} → {difference.new or 'absent'}"
    if part == "code":
        return f"code {rest} changed"
    if part == "rerun":
        return "rerun was asked for"
    return str(difference)
