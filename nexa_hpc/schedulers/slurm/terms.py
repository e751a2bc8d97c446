"""The terms under which a run is submitted: what is known of the cluster, and the policy.

Recorded with the run at planning, as plain JSON of `core.cluster.Cluster` and `SlurmPolicy`, so
that whoever advances it later, from any node, goes by the same. Called by `handover`, `rearming`
and planning. Standard library alone.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from nexa_hpc.core.canonical import canonical_json
from nexa_hpc.core.instances import Instance
from nexa_hpc.core.trying import Changes, rule_of
from nexa_hpc.schedulers.slurm import requests, shapes, units
from nexa_hpc.schedulers.slurm.queue import Queue

_LIGHT_MIN = 5
"""What a light step asks for unless it says so."""
_KEPT_SLOTS = 1
"""Of the user's submit limit, for the advance job."""


@dataclass(frozen=True)
class Terms:
    """What a run is submitted under."""

    cluster: Mapping[str, Any]
    policy: Mapping[str, Any]
    _asked: dict[Hashable, units.Job] = field(default_factory=dict, compare=False, repr=False)
    """What like steps ask for: a run has thousands of steps and a few kinds."""

    @classmethod
    def of(cls, request: Mapping[str, Any]) -> Terms | None:
        """Return the terms recorded in a run's request; None for a run without Slurm."""
        recorded = request.get("slurm")
        return None if recorded is None else cls(recorded["cluster"], recorded["policy"])

    def to_json(self) -> dict[str, Any]:
        """Return the terms as a run's request records them."""
        return {"cluster": self.cluster, "policy": self.policy}

    @property
    def name(self) -> str:
        """The ClusterName."""
        return str(self.cluster["name"])

    def queue(self) -> Queue:
        """Return the queue of this cluster."""
        return Queue(
            self.name,
            least_interval_s=self.cluster["min_poll_interval_s"],
            accounting=self.cluster["accounting"],
        )

    def resources(self, declared: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a step that declares `declared` asks for, defaults included."""
        return requests.merged(
            self.cluster["defaults"],
            self.policy["defaults"],
            declared,
        )

    def retry(self, instance: Instance) -> Mapping[str, Any]:
        """Return what of a step is tried again."""
        return rule_of(instance, self.policy)

    def limit_min(self, resources: Mapping[str, Any]) -> int | None:
        """Return the time limit of the partition that `resources` names; None where unknown."""
        partitions = self.cluster["partitions"]
        named = resources.get("partition")
        if named is None:
            facts: Mapping[str, Any] = next(
                (p for p in partitions.values() if p.get("default")), {}
            )
            return facts.get("max_time_min")
        # Of several, Slurm takes whichever starts the job first.
        limits = [partitions.get(name, {}).get("max_time_min") for name in str(named).split(",")]
        known = [limit for limit in limits if limit is not None]
        return max(known) if len(known) == len(limits) else None

    def job(
        self,
        instance: Instance,
        parents: Iterable[str],
        changes: Changes,
        element: str | None = None,
    ) -> units.Job:
        """Return `instance` as `shapes` sees it; `element` is the step whose element it shares."""
        kind = (str(instance.resources), instance.light, bool(instance.env), changes)
        if kind not in self._asked:
            self._asked[kind] = self._job(instance, changes)
        asked = self._asked[kind]
        return replace(asked, step=instance.step, parents=tuple(parents), element=element)

    def _job(self, instance: Instance, changes: Changes) -> units.Job:
        resources = self.resources(instance.resources)
        return units.Job(
            step="",
            request=_hashable(resources, changes),
            time_min=self._time_min(instance, resources, changes),
            parents=(),
            light=instance.light and not instance.resources and not instance.env,
            parallel=requests.tasks(resources) > 1,
            at_once=resources.get("array_parallelism"),
            throttle=canonical_json(resources),
            limit_min=self.limit_min(resources),
        )

    def _time_min(self, instance: Instance, resources: Mapping[str, Any], changes: Changes) -> int:
        if instance.light and "timeout_min" not in instance.resources:
            return _LIGHT_MIN
        asked = resources.get("timeout_min") or requests.DEFAULT_TIMEOUT_MIN
        longer = round(asked * changes.time_factor)
        limit = self.limit_min(resources)
        return longer if limit is None else max(asked, min(longer, limit))

    def limits(self) -> shapes.Limits:
        """Return what bounds the shapes."""
        return shapes.Limits(
            max_array=self.cluster["max_array_size"],
            chunk=self.cluster["aftercorr_chunk"],
            per_element=self.policy["points_per_element"],
            at_once=self.policy["max_running"],
        )

    def room(self, live: int) -> int | None:
        """Return how many more elements may be submitted beside `live` ones; None: no limit."""
        limit = self.cluster["max_submit"]
        return None if limit is None else max(0, limit - live - _KEPT_SLOTS)


def _hashable(resources: Mapping[str, Any], changes: Changes) -> Hashable:
    """Return what must be equal for two steps to share an array: all but the time."""
    same = {k: v for k, v in resources.items() if k not in ("timeout_min", "array_parallelism")}
    return canonical_json([same, changes.mem_factor, list(changes.exclude)])
