"""What Slurm's words mean: which are ends, and of what; none that we do not know is one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexa_hpc.core.states import Reason, State
from nexa_hpc.schedulers.slurm import words

DOCUMENTED = (
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "CONFIGURING", "COMPLETING", "DEADLINE", "FAILED",
    "NODE_FAIL", "OUT_OF_MEMORY", "PENDING", "PREEMPTED", "RUNNING", "RESV_DEL_HOLD",
    "REQUEUE_FED", "REQUEUE_HOLD", "REQUEUED", "RESIZING", "SIGNALING", "SPECIAL_EXIT",
    "STAGE_OUT", "STOPPED", "SUSPENDED", "TIMEOUT",
)  # fmt: skip
"""squeue(1), JOB STATE CODES."""


def kinds_of(state: str) -> list[bool]:
    plain = words.plain(state)
    return [plain in words.WAITING, plain in words.RUNNING, plain in words.ENDS]


@pytest.mark.parametrize("state", DOCUMENTED)
def test_each_state_that_slurm_documents_is_of_one_kind(state: str) -> None:
    assert sum(kinds_of(state)) == 1


@given(st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126)))
def test_a_word_that_slurm_does_not_document_is_of_no_kind(state: str) -> None:
    if words.plain(state) not in DOCUMENTED:
        assert sum(kinds_of(state)) == 0
        assert not words.lives(state)


def test_what_follows_a_word_is_no_part_of_it() -> None:
    assert words.plain("CANCELLED by 1000") == "CANCELLED"
    assert words.plain("CANCELLED+") == "CANCELLED"


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ("TIMEOUT", Reason.TIMEOUT),
        ("DEADLINE", Reason.TIMEOUT),
        ("OUT_OF_MEMORY", Reason.OUT_OF_MEMORY),
        ("NODE_FAIL", Reason.NODE_FAIL),
        ("BOOT_FAIL", Reason.NODE_FAIL),
        ("FAILED", Reason.EXCEPTION),
        ("COMPLETED", Reason.LOST),
    ],
)
def test_an_end_without_a_record_is_a_failure_with_its_reason(state: str, reason: Reason) -> None:
    end, why, message = words.ended(state, has_started=True, reason="None")
    assert (end, why) == (State.FAILED, reason)
    assert message


def test_a_job_that_failed_before_its_step_began_is_its_nodes_failure() -> None:
    end, why, _ = words.ended("FAILED", has_started=False, reason="NonZeroExitCode")
    assert (end, why) == (State.FAILED, Reason.NODE_FAIL)


@pytest.mark.parametrize("reason", ["None", "Dependency", "Priority", ""])
def test_a_job_that_a_person_cancelled_is_cancelled(reason: str) -> None:
    end, why, _ = words.ended("CANCELLED", has_started=False, reason=reason)
    assert (end, why) == (State.CANCELLED, None)


def test_a_job_that_slurm_cancelled_for_its_dependency_is_given_back() -> None:
    end, _, _ = words.ended("CANCELLED", has_started=False, reason="DependencyNeverSatisfied")
    assert end is State.PENDING


def test_a_job_preempted_for_good_is_given_back() -> None:
    end, why, _ = words.ended("PREEMPTED", has_started=True, reason="None")
    assert (end, why) == (State.PENDING, Reason.NODE_FAIL)


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("Dependency", "waits for the steps before it"),
        ("(Resources)", "waits for free nodes"),
        ("ReqNodeNotAvail, UnavailableNodes:n1", "waits: a node that it needs is down or reserved"),
        (
            "QOSMaxJobsPerUserLimit",
            "waits for a limit of the account or the QOS (QOSMaxJobsPerUserLimit)",
        ),
        ("SomethingNew", "waits (SomethingNew)"),
    ],
)
def test_why_a_job_waits_is_told_in_words(reason: str, told: str) -> None:
    assert words.waits(reason) == told
