"""What is tried again: by the reason, as often as is allowed, with what changed."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexa_hpc.core.records import Attempt
from nexa_hpc.core.retries import SLURM_RETRY
from nexa_hpc.core.trying import Changes, changes_for, in_round, is_out_of_time, is_tried_again

RETRY: dict[str, Any] = {
    "out_of_memory": {"times": 2, "mem_factor": 1.5},
    "timeout": {"times": 1, "time_factor": 2.0},
    "node_fail": {"times": 3, "exclude_node": True},
    "exception": {"times": 0},
}
BEGAN = datetime(2026, 1, 2, tzinfo=timezone.utc)


def attempt(
    number: int, reason: str | None, state: str = "FAILED", *, host: str = "n1", minutes: float = 1
) -> Attempt:
    """Return an attempt that ran `minutes` on `host`."""
    ended = BEGAN + timedelta(minutes=minutes)
    start = {"started_at": BEGAN.isoformat(), "host": host}
    end = {"ended_at": ended.isoformat(), "state": state, "reason": reason, "message": ""}
    return Attempt(number, {}, start, end)


def failed(*reasons: str) -> list[Attempt]:
    return [attempt(number, reason) for number, reason in enumerate(reasons, 1)]


@pytest.mark.parametrize(
    ("reason", "times"), [("out_of_memory", 2), ("timeout", 1), ("node_fail", 3), ("exception", 0)]
)
def test_each_reason_has_a_budget_of_its_own(reason: str, times: int) -> None:
    for count in range(1, 6):
        assert is_tried_again(failed(*[reason] * count), RETRY) is (count <= times)


def test_what_is_lost_counts_as_a_failure_of_its_node() -> None:
    assert is_tried_again(failed("lost", "node_fail", "lost"), RETRY)
    assert not is_tried_again(failed("lost", "node_fail", "lost", "node_fail"), RETRY)


def test_a_reason_that_nobody_named_is_not_tried_again() -> None:
    assert not is_tried_again(failed("input_changed"), RETRY)
    assert not is_tried_again(failed("timeout"), {})


def test_what_was_given_back_costs_nothing() -> None:
    preempted = [attempt(n, "node_fail", "PENDING") for n in range(1, 20)]
    assert is_tried_again([*preempted, attempt(20, "node_fail")], RETRY)


REASONS = st.sampled_from(["out_of_memory", "timeout", "node_fail", "lost", "exception"])


@given(st.lists(REASONS, min_size=1, max_size=30))
def test_trying_comes_to_an_end(reasons: list[str]) -> None:
    made: list[Attempt] = []
    for number, reason in enumerate(reasons, 1):
        made.append(attempt(number, reason))
        if not is_tried_again(made, RETRY):
            break
    assert len(made) <= 1 + sum(rule["times"] for rule in RETRY.values())


@given(st.lists(REASONS, min_size=1, max_size=6))
def test_changes_depend_on_how_often_what_failed_and_not_on_the_order(reasons: list[str]) -> None:
    found = changes_for(failed(*reasons), RETRY)
    assert found.mem_factor == pytest.approx(1.5 ** reasons.count("out_of_memory"))
    assert found.time_factor == pytest.approx(2.0 ** reasons.count("timeout"))
    assert found == changes_for(failed(*sorted(reasons)), RETRY)


def test_only_nodes_that_failed_are_stayed_away_from() -> None:
    attempts = [
        attempt(1, "node_fail", host="n2"),
        attempt(2, "exception", host="n3"),
        attempt(3, "node_fail", host="n1"),
        attempt(4, "node_fail", "PENDING", host="n4"),
    ]
    assert changes_for(attempts, RETRY) == Changes(exclude=("n1", "n2"))
    never = {"node_fail": {"times": 3, "exclude_node": False}}
    assert changes_for(attempts, never) == Changes()
    unstarted = Attempt(1, {}, None, attempts[0].end)
    assert changes_for([unstarted], RETRY) == Changes()


def test_all_attempts_of_a_round_share_their_time() -> None:
    retry = {**RETRY, "total_time_min": 10, "timeout": {"times": 9}}
    attempts = [attempt(1, "timeout", minutes=4), attempt(2, "node_fail", "PENDING", minutes=5)]
    assert not is_out_of_time(attempts, retry)
    attempts.append(attempt(3, "timeout", minutes=1))
    assert is_out_of_time(attempts, retry)
    assert not is_tried_again(attempts, retry)
    assert is_tried_again(in_round(attempts, 1), retry)
    assert not is_out_of_time(attempts, RETRY)


def test_an_attempt_that_runs_counts_until_now() -> None:
    running = Attempt(1, {}, {"started_at": BEGAN.isoformat(), "host": "n1"}, None)
    assert is_out_of_time([running], {"total_time_min": 10})
    unstarted = Attempt(1, {}, None, None)
    assert not is_out_of_time([unstarted], {"total_time_min": 10})


def test_what_holds_where_nothing_is_said_retries_the_clusters_faults_alone() -> None:
    retry = SLURM_RETRY.model_dump(mode="json", exclude_none=True)
    assert not is_tried_again(failed("exception"), retry)
    for reason in ("out_of_memory", "timeout", "node_fail", "lost"):
        assert is_tried_again(failed(reason), retry)
