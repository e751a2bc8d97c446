"""The points of a multirun: each one's key, number and whereabouts, also in an earlier session.

A point is known by its overrides, whatever their order. Of points with equal overrides (Optuna's
samplers repeat themselves) the n-th is the n-th. Called by `session`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nexa_hpc.core.canonical import sha256_json
from nexa_hpc.core.instances import RUN, SINGLE_OUTPUT, SKIP, Instance
from nexa_hpc.core.paths import ProjectPaths
from nexa_hpc.core.runs import Run, all_runs

KIND = "hydra_job"
_USES = "nexa_hpc.hydra_runs.job:run"
_FORMAT = 1


@dataclass(frozen=True)
class Point:
    """One job of a multirun."""

    number: int
    """Hydra's `hydra.job.num`."""
    overrides: tuple[str, ...]
    key: str

    @property
    def step(self) -> str:
        """What `status` and the job's name call it."""
        return f"job_{self.number}"


@dataclass
class Multirun:
    """A multirun: the points that it has had in all its sessions."""

    id: str
    runs: Sequence[Run] = ()
    """Of earlier sessions, oldest first."""
    numbers: dict[str, int] = field(default_factory=dict)
    """Key -> number."""
    is_resumed: bool = False
    """Whether earlier sessions had points."""
    matched: int = 0
    """How many points of this session earlier ones had, too."""
    _seen: Counter[tuple[str, ...]] = field(default_factory=Counter)

    @classmethod
    def new(cls) -> Multirun:
        """Return one that no other has to do with."""
        return cls(os.urandom(8).hex())

    @classmethod
    def newest(cls, paths: ProjectPaths) -> Multirun | None:
        """Return the newest multirun that was submitted in a sweep folder, or None."""
        runs = sorted(all_runs(paths), key=lambda run: str(run.request["created_at"]))
        runs = [run for run in runs if "hydra_multirun" in run.request]
        if not runs:
            return None
        own = runs[-1].request["hydra_multirun"]
        runs = [run for run in runs if run.request["hydra_multirun"] == own]
        numbers = {
            instance.key: int(instance.params["number"])
            for run in runs
            for instance in run.instances.values()
        }
        return cls(own, runs, numbers, is_resumed=True)

    def points(self, job_overrides: Sequence[Sequence[str]], first: int) -> list[Point]:
        """Return the points of a batch; one that was there before keeps its number.

        Others get `first` and what follows, but no number of an earlier one: it names a folder.
        """
        found = []
        for number, overrides in enumerate(job_overrides, first):
            key = self._key(overrides)
            if key in self.numbers:
                self.matched += 1
            else:
                taken = set(self.numbers.values())
                self.numbers[key] = number if number not in taken else max(taken) + 1
            found.append(Point(self.numbers[key], tuple(overrides), key))
        return found

    def _key(self, overrides: Sequence[str]) -> str:
        same = tuple(sorted(overrides))
        self._seen[same] += 1
        return sha256_json(["hydra_job", _FORMAT, self.id, same, self._seen[same]])


def instance_of(
    point: Point,
    params: Mapping[str, Any],
    resources: Mapping[str, Any],
    retry: Mapping[str, Any],
    *,
    is_done: bool,
) -> Instance:
    """Return `point` as a run's plan has it; `params` are those of `job.run`, without its number.

    What the document behind a step's key holds is here what makes a point the same.
    """
    return Instance(
        step=point.step,
        key=point.key,
        uses=_USES,
        kind=KIND,
        backend=None,
        scheduler="slurm",
        effect=False,
        params={**params, "number": point.number},
        inputs={},
        sources={},
        outputs={SINGLE_OUTPUT: None},
        parents=(),
        env={},
        resources=resources,
        labels={},
        document={"format": _FORMAT, "overrides": list(point.overrides), "code": {}, "rerun": 0},
        resolved={},
        action=SKIP if is_done else RUN,
        reason="done before" if is_done else "a point of a multirun",
        retry=retry,
        resumable=params["max_num_timeout"] > 0,
    )
