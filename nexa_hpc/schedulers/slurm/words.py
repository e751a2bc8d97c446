"""Slurm's words in ours: which states are live, which are ends, and what the reasons mean.

A word that is not listed is never taken for an end. Sources: squeue(1), JOB STATE CODES and JOB
REASON CODES; sacct(1). Called by `watching`. Standard library alone.
"""

from __future__ import annotations

from nexa_hpc.core.states import Reason, State

WAITING = frozenset(
    ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD")
)
RUNNING = frozenset(
    (
        "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT",
        "RESIZING",
    )
)  # fmt: skip
FAILED = {
    "FAILED": Reason.EXCEPTION,
    "TIMEOUT": Reason.TIMEOUT,
    "DEADLINE": Reason.TIMEOUT,
    "OUT_OF_MEMORY": Reason.OUT_OF_MEMORY,
    "NODE_FAIL": Reason.NODE_FAIL,
    "BOOT_FAIL": Reason.NODE_FAIL,
}
COMPLETED, CANCELLED, PREEMPTED = "COMPLETED", "CANCELLED", "PREEMPTED"
ENDS = frozenset((*FAILED, COMPLETED, CANCELLED, PREEMPTED))
PREEMPTION_WORDS = "preempted by Slurm"

_ENDINGS = {
    "FAILED": "its job failed and it left no end record",
    "TIMEOUT": "it reached its time limit",
    "DEADLINE": "it reached the deadline of its job",
    "OUT_OF_MEMORY": "it used more memory than it asked for",
    "NODE_FAIL": "its node failed",
    "BOOT_FAIL": "its node did not boot",
}
_WAITS = {
    "None": "waits to be looked at",
    "Priority": "waits for its turn: jobs of higher priority are before it",
    "Resources": "waits for free nodes",
    "Dependency": "waits for the steps before it",
    "DependencyNeverSatisfied": "can never start: a job before it did not succeed",
    "JobArrayTaskLimit": "waits for its array's throttle",
    "BeginTime": "waits for its time to begin (Slurm pauses two minutes after a requeue)",
    "JobHeldUser": "is held (scontrol release)",
    "JobHeldAdmin": "is held by the administrators",
    "ReqNodeNotAvail": "waits: a node that it needs is down or reserved",
    "NodeDown": "waits: a node that it needs is down",
    "PartitionDown": "waits: its partition is down",
    "PartitionInactive": "waits: its partition is inactive",
    "PartitionNodeLimit": "can never start: it asks for more than its partition has",
    "PartitionTimeLimit": "can never start: it asks for more time than its partition allows",
    "PartitionConfig": "can never start: it asks for what its partition does not have",
    "BadConstraints": "can never start: no node has what it asks for",
    "Licenses": "waits for a licence",
    "Reservation": "waits for its reservation",
    "launch_failed_requeued_held": "is held: it could not be started (scontrol release)",
    "job_requeued_in_held_state": "is held after a requeue (scontrol release)",
}
_LIMITS = ("QOS", "Assoc", "MaxCpu", "MaxNode", "MaxJobs")


def plain(state: str) -> str:
    """Return Slurm's word alone: `CANCELLED by 1000` is CANCELLED."""
    return state.split(" ", 1)[0].rstrip("+")


def lives(state: str) -> bool:
    """Return whether a job of that state waits or runs."""
    return plain(state) in WAITING or plain(state) in RUNNING


def waits(reason: str) -> str:
    """Return in words why a job waits."""
    code = reason.partition(",")[0].strip("() ")
    if code in _WAITS:
        return _WAITS[code]
    if code.startswith(_LIMITS):
        return f"waits for a limit of the account or the QOS ({code})"
    return f"waits ({code})"


def ending(state: str) -> str:
    """Return in words how a job ended."""
    return _ENDINGS.get(state, state)


def cannot_start(reason: str) -> bool:
    """Return whether a job waits, or waited until Slurm cancelled it, for what can never come."""
    return reason.strip("() ").startswith("DependencyNeverSatisfied")


def ended(state: str, *, has_started: bool, reason: str) -> tuple[State, Reason | None, str]:
    """Return what an end in Slurm means for an attempt that left no end record: how it ended.

    PENDING means that it was given back: nothing came of it, and another may be made.
    """
    if state == CANCELLED:
        # A job that a person cancels while it waits for another keeps the reason "Dependency".
        if cannot_start(reason):
            return State.PENDING, None, "given back: a job before it did not succeed"
        return State.CANCELLED, None, "its job was cancelled in Slurm"
    if state == PREEMPTED:
        return State.PENDING, Reason.NODE_FAIL, f"given back: {PREEMPTION_WORDS}"
    if state == "FAILED" and not has_started:
        return State.FAILED, Reason.NODE_FAIL, "its job failed before the step could start"
    if state in FAILED:
        return State.FAILED, FAILED[state], ending(state)
    return State.FAILED, Reason.LOST, "its job ended and it left no end record"
