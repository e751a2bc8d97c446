"""What a step's resources become as submitit's parameters, and what cannot be asked."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexa_hpc.core.trying import Changes
from nexa_hpc.schedulers.slurm import requests, submission


def parameters(resources: dict[str, Any], **other: Any) -> dict[str, Any]:
    return requests.parameters(resources, **{"time_min": 60, "requeue": True, **other})


def test_resources_are_handed_on_in_slurms_words() -> None:
    asked = {
        "nodes": 2,
        "tasks_per_node": 4,
        "cpus_per_task": 8,
        "gpus_per_node": 4,
        "mem_gb": 1.5,
        "partition": "gpu",
        "exclusive": True,
        "reservation": "ours",
        "signal_delay_s": 90,
        "slurm": {"extra": {"nice": 5, "--mail-type": "END", "hold": True, "spread_job": False}},
    }
    assert parameters(asked) == {
        "nodes": 2,
        "ntasks_per_node": 4,
        "cpus_per_task": 8,
        "gpus_per_node": 4,
        "mem": "1536M",
        "partition": "gpu",
        "exclusive": True,
        "time": 60,
        "srun_args": ["--kill-on-bad-exit=1"],
        "signal_delay_s": 90,
        "additional": {
            "reservation": "ours",
            "nice": 5,
            "mail-type": "END",
            "hold": True,
            "kill-on-invalid-dep": "yes",
            "requeue": True,
        },
    }


def test_where_requeues_are_forbidden_none_is_asked_for() -> None:
    additional = parameters({}, requeue=False)["additional"]
    assert additional == {"kill-on-invalid-dep": "yes", "no-requeue": True}


@pytest.mark.parametrize("name", ["mem_gb", "mem_per_cpu_gb", "mem_per_gpu_gb"])
def test_more_memory_is_asked_for_in_the_terms_of_the_step(name: str) -> None:
    found = parameters({name: 2}, changes=Changes(mem_factor=2.25))
    assert found[name.removesuffix("_gb")] == "4608M"


def test_nodes_to_stay_away_from_are_added_to_those_of_the_step() -> None:
    changes = Changes(exclude=("n1", "n2"))
    assert parameters({"exclude": "n[7-9]"}, changes=changes)["exclude"] == "n[7-9],n1,n2"
    assert parameters({}, changes=changes)["exclude"] == "n1,n2"
    assert "exclude" not in parameters({})


@given(st.floats(0.0001, 10_000), st.floats(1, 10))
def test_memory_is_a_whole_number_of_mebibytes_and_never_less_for_a_factor(
    amount: float, factor: float
) -> None:
    least, more = requests.memory(amount), requests.memory(amount * factor)
    assert least.endswith("M") and int(least[:-1]) >= 1
    assert int(more[:-1]) >= int(least[:-1])


@given(st.integers(1, 10_000))
def test_a_step_is_told_of_its_time_limit_before_it_and_after_its_start(time_min: int) -> None:
    delay_s = requests.signal_delay_s({}, time_min)
    assert 0 < delay_s <= 120
    assert delay_s < time_min * 60 / 2


def test_of_alternatives_the_last_that_was_named_counts() -> None:
    assert requests.merged({"mem_gb": 4}, {"mem_per_cpu_gb": 2}) == {"mem_per_cpu_gb": 2}
    assert requests.merged({"gres": "gpu:1"}, {"gpus_per_node": 2}) == {"gpus_per_node": 2}
    assert requests.merged({"mem_gb": 4}, {"mem_gb": None}) == {"mem_gb": 4}


def test_extra_options_of_all_layers_are_kept_and_the_last_word_counts() -> None:
    layers = [{"slurm": {"extra": {"nice": 1, "qos": "a"}}}, {"slurm": {"extra": {"nice": 2}}}]
    assert requests.merged(*layers) == {"slurm": {"extra": {"nice": 2, "qos": "a"}}}


def test_what_sbatch_would_take_from_the_environment_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("ACCOUNT", "PARTITION", "QOS"):
        monkeypatch.delenv(f"SBATCH_{name}", raising=False)
    assert requests.environment_defaults() == {}
    monkeypatch.setenv("SBATCH_ACCOUNT", "ours")
    assert requests.environment_defaults() == {"account": "ours"}


@pytest.mark.parametrize("evil", ["x\n#SBATCH --uid=0", "x\rY", "a\x1b[0m", "a\0b"])
def test_a_control_character_gets_into_no_script(evil: str) -> None:
    keys = [key for key, _ in requests.problems({"partition": evil}, None)]
    assert keys == ["resources.partition"]
    (problem,) = requests.problems({"slurm": {"extra": {"mail-user": evil}}}, None)
    assert "line break" in problem[1]


@pytest.mark.parametrize("name", ["array", "--dependency", "job_name", "requeue", "time", "mem"])
def test_options_that_are_ours_are_refused_with_what_to_say_instead(name: str) -> None:
    (problem,) = requests.problems({"slurm": {"extra": {name: "x"}}}, None)
    assert "is not yours to set: " in problem[1]


@pytest.mark.parametrize("name", ["", "a b", "x;y", "$(id)", "a=b"])
def test_what_is_no_option_is_refused(name: str) -> None:
    (problem,) = requests.problems({"slurm": {"extra": {name: "x"}}}, None)
    assert problem[1] == "is no option of sbatch"


def test_more_time_than_the_partition_allows_is_refused_with_the_way_out() -> None:
    (problem,) = requests.problems({"timeout_min": 61, "partition": "short"}, 60)
    assert problem[0] == "resources.timeout_min"
    assert "61 is more than the 60 min" in problem[1] and "total_time_min" in problem[1]
    assert not list(requests.problems({"timeout_min": 60}, 60))
    assert not list(requests.problems({"timeout_min": 10**6}, None))


def test_tasks_and_gpus_are_counted_over_all_nodes() -> None:
    assert requests.tasks({}) == 1
    assert requests.tasks({"nodes": 2, "tasks_per_node": 4}) == 8
    assert requests.gpus({"nodes": 2, "gpus_per_node": 3}) == 6
    assert requests.gpus({"nodes": 2, "tasks_per_node": 2, "gpus_per_task": 1}) == 4
    assert requests.gpus({}) == 0


@pytest.mark.parametrize(
    ("said", "is_full"),
    [
        ("sbatch: error: AssocMaxSubmitJobLimit", True),
        ("sbatch: error: QOSMaxSubmitJobPerUserLimit", True),
        ("sbatch: error: QOSMaxWallDurationPerJobLimit", False),
        ("sbatch: error: QOSMaxCpuPerJobLimit", False),
    ],
)
def test_a_limit_that_no_waiting_helps_against_is_no_full_queue(said: str, is_full: bool) -> None:
    rest = "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy"
    error = submission._refusal(OSError(f"{said}\n{rest} (job submit limit, user's size and/or"))
    assert isinstance(error, submission.QueueFullError) is is_full
