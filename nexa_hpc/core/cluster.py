"""A cluster as its site describes it, and the policy of submitting to it: two YAML files.

    configs/cluster/<ClusterName>.yaml    facts, as `nexa-hpc cluster probe` writes them: `Cluster`
    configs/scheduler/slurm.yaml          policy: `SlurmPolicy`

Both are optional; without them Slurm's own defaults hold. `compose` lays the project's over those
of the site and the user, at planning alone; what comes of it is recorded with the run. Frozen
pydantic models.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationError

from nexa_hpc.core.document import read_document
from nexa_hpc.core.retries import NO_RETRY, RetrySpec
from nexa_hpc.core.spec_problems import translate
from nexa_hpc.core.spec_sections import (
    NO_RESOURCES,
    Amount,
    Count,
    CountOrZero,
    Frozen,
    PathText,
    ResourcesSpec,
    Text,
    nothing_is_empty,
)
from nexa_hpc.errors import SpecError

_Resources = Annotated[ResourcesSpec, BeforeValidator(nothing_is_empty)]


class Partition(Frozen):
    """What is known of one partition."""

    default: bool = False
    max_time_min: Count | None = None
    """None: no limit."""
    nodes: CountOrZero | None = None
    cpus_per_node: Count | None = None
    mem_gb_per_node: Amount | None = None
    gpus_per_node: CountOrZero = 0


class Cluster(Frozen):
    """Facts about one Slurm cluster, and how its staff want it used."""

    name: Text
    """Slurm's ClusterName."""
    login_policy: Literal["warn", "refuse", "allow"] = "warn"
    """What becomes of local steps on a host with sbatch, outside of a job."""
    accounting: bool = True
    """Whether sacct answers."""
    max_array_size: Count = 1001
    """MaxArraySize: the number of indices, from 0."""
    max_submit: Count | None = None
    """How many jobs and elements a user may have, where it is known."""
    aftercorr_chunk: Count = 10
    """`correspond_after_task_cnt`: beyond it slurmctld does not split an array with `aftercorr`,
    and may release or cancel the wrong elements (job_scheduler.c, build_job_queue)."""
    min_job_age_s: CountOrZero = 300
    """MinJobAge: when slurmctld forgets a job that has ended."""
    kill_invalid_depend: bool = False
    """Whether slurmctld cancels by itself what can never start (DependencyParameters)."""
    requeue: bool = True
    """Whether jobs may be requeued (JobRequeue)."""
    preemption: Text | None = None
    """PreemptMode, where PreemptType is not none."""
    sbatch_on_nodes: bool = True
    """Whether jobs may submit jobs."""
    python: PathText | None = None
    """The interpreter on the nodes that has nexa_hpc; default: the one that submits."""
    poll_interval_s: Amount = 60
    """How often `--wait` asks the scheduler."""
    min_poll_interval_s: Amount = 30
    """How often all processes of a user together ask it, at most."""
    partitions: dict[str, Partition] = Field(default_factory=dict)
    defaults: _Resources = Field(default_factory=lambda: NO_RESOURCES)

    def partition(self, name: str | None) -> Partition | None:
        """Return the partition `name`, or the default one; None where it is not known."""
        if name is not None:
            return self.partitions.get(name)
        return next((p for p in self.partitions.values() if p.default), None)


class StopAfter(Frozen):
    """When a run whose steps fail all alike is stopped."""

    failures: Count | None = None
    """Of any kind, of one step's `uses`."""
    same_error: Count | None = None
    """With the same message."""


class AdvanceJob(Frozen):
    """The small job that advances a run when its arrays have ended."""

    enabled: bool = True
    not_before_min: Amount = 2
    """It starts no sooner than that after the submission."""
    partition: Text | None = None
    timeout_min: Count = 15
    mem_gb: Amount = 1


class SlurmPolicy(Frozen):
    """How runs are submitted: defaults of the project or the user, over those of the site."""

    defaults: _Resources = Field(default_factory=lambda: NO_RESOURCES)
    max_running: Count | None = None
    """How many elements of one run may run at a time."""
    canary: Count | None = None
    """How many instances of each step run before the others are submitted."""
    stop_after: StopAfter = Field(default_factory=StopAfter)
    points_per_element: Count = 1
    """How many independent chains one element runs, one after the other."""
    retry: RetrySpec = Field(default_factory=lambda: NO_RETRY)
    advance_job: AdvanceJob = Field(default_factory=AdvanceJob)


def cluster_file(root: Path, name: str) -> Path:
    """Return where the facts of the cluster `name` are kept in the project at `root`."""
    return root / "configs" / "cluster" / f"{name}.yaml"


def read_cluster(root: Path, name: str) -> Cluster:
    """Return what the project's own file says of the cluster `name`; raises SpecError.

    `compose.run_config.cluster_of` has what all layers say.
    """
    file = cluster_file(root, name)
    if not file.is_file():
        return Cluster(name=name)
    document = read_document(file)
    try:
        return Cluster.model_validate({"name": name, **document.value})
    except ValidationError as error:
        problems = translate(error, Cluster, document.value, document, ())
        raise SpecError(problems) from error
