"""The terms of a new run: what overrides what, what is refused, what is recorded. No cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from nexa_hpc.errors import UserError
from nexa_hpc.slurm_terms import read_terms


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a policy, on a host that belongs to a cluster."""
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "somewhere")
    for variable in ("SBATCH_ACCOUNT", "SBATCH_PARTITION", "SBATCH_QOS"):
        monkeypatch.delenv(variable, raising=False)
    file = tmp_path / "configs/scheduler/slurm.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("stop_after: {same_error: 5}\n")
    return tmp_path


def test_one_field_of_a_section_is_overridden_and_the_others_stay(root: Path) -> None:
    terms = read_terms(root, {"stop_after": {"failures": 3}})
    assert terms.policy["stop_after"] == {"failures": 3, "same_error": 5}


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        ({"max_runing": 3}, "max_runing"),
        ({"canary": 0}, "canary"),
        ({"stop_after": {"failure": 3}}, "stop_after.failure"),
    ],
)
def test_a_policy_that_cannot_be_is_refused_by_its_field(
    root: Path, policy: dict[str, object], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        read_terms(root, policy)


def test_what_sbatch_would_take_from_the_shell_is_recorded_for_whoever_advances(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SBATCH_ACCOUNT", "ours")
    terms = read_terms(root, {})
    monkeypatch.delenv("SBATCH_ACCOUNT")
    assert terms.resources({})["account"] == "ours"
    assert terms.to_json()["cluster"]["defaults"]["account"] == "ours"
