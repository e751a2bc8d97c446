"""Multiruns of Hydra apps, without a cluster: what is loaded from where, which points are one."""

from __future__ import annotations

import importlib.util
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from nexa_hpc.core.retries import RetrySpec
from nexa_hpc.core.spec_sections import ResourcesSpec
from nexa_hpc.errors import StateError, UserError
from nexa_hpc.hydra_runs import pickles
from nexa_hpc.hydra_runs.points import Multirun

# ------------------------------------------------------------------------------ what is loaded


class Trap:
    """Unpickled, it makes a folder; nothing else tells that it ran."""

    def __init__(self, sprung: Path) -> None:
        self._sprung = sprung

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._sprung),)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A file that is a trap, in a folder of our own."""
    folder = tmp_path / "calls"
    pickles.write_new({folder / "call.pickle": pickle.dumps(Trap(tmp_path / "sprung"))})
    return folder / "call.pickle"


def test_a_pickle_of_ones_own_is_loaded(place: Path, tmp_path: Path) -> None:
    assert (place.stat().st_mode & 0o777, place.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    pickles.load(place)
    assert (tmp_path / "sprung").is_dir()


def _linked(place: Path) -> None:
    place.rename(place.with_name("elsewhere"))
    place.symlink_to("elsewhere")


def _in_a_linked_folder(place: Path) -> None:
    place.parent.rename(place.parent.with_name("other"))
    place.parent.symlink_to("other")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda place: place.chmod(0o620),
        lambda place: place.chmod(0o602),
        lambda place: place.parent.chmod(0o770),
        _linked,
        _in_a_linked_folder,
        pytest.param(
            lambda place: os.chown(place, 12345, -1),
            marks=pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give files away"),
        ),
        pytest.param(
            lambda place: os.chown(place.parent, 12345, -1),
            marks=pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give files away"),
        ),
    ],
)
def test_a_pickle_that_others_could_have_put_there_is_not_loaded(
    place: Path, tmp_path: Path, spoil: Any
) -> None:
    spoil(place)
    with pytest.raises(UserError, match="not loaded"):
        pickles.load(place)
    assert not (tmp_path / "sprung").exists()


def test_a_pickle_that_is_gone_is_told_so(place: Path) -> None:
    place.unlink()
    with pytest.raises(StateError, match="is gone"):
        pickles.load(place)


# ------------------------------------------------------------------------------ the same points


def test_a_point_is_known_by_its_overrides_in_whatever_order() -> None:
    first, later = Multirun("m"), Multirun("m")
    (a, b) = first.points([["x=1", "y=2"], ["x=2", "y=2"]], 0)
    later.numbers.update({point.key: point.number for point in (a, b)})
    assert [p.number for p in later.points([["y=2", "x=2"], ["y=2", "x=1"]], 0)] == [1, 0]
    assert later.matched == 2


def test_a_point_that_comes_again_is_another_one_and_stays_so() -> None:
    first, later = Multirun("m"), Multirun("m")
    points = [*first.points([["x=1"], ["x=1"]], 0), *first.points([["x=1"]], 2)]
    assert len({point.key for point in points}) == 3
    assert [point.number for point in points] == [0, 1, 2]
    later.numbers.update({point.key: point.number for point in points})
    assert later.points([["x=1"], ["x=1"], ["x=1"]], 0) == points


def test_a_new_point_of_a_resumed_multirun_gets_no_folder_of_an_earlier_one() -> None:
    first, later = Multirun("m"), Multirun("m")
    later.numbers.update({p.key: p.number for p in first.points([["x=1"], ["x=2"]], 0)})
    assert [p.number for p in later.points([["x=9"], ["x=1"], ["x=8"], ["x=2"]], 0)] == [2, 0, 3, 1]


def test_another_multirun_has_other_keys() -> None:
    (a,), (b,) = Multirun.new().points([["x=1"]], 0), Multirun.new().points([["x=1"]], 0)
    assert a.key != b.key


# ------------------------------------------------------------------------------ the plugin's words


def test_the_launcher_has_the_words_of_a_step_s_resources_and_retries() -> None:
    file = Path(pickles.__file__).parents[1] / "_hydra_plugins/nexa_launcher/launcher.py"
    spec = importlib.util.spec_from_file_location("nexa_launcher_under_test", file)
    assert spec is not None and spec.loader is not None
    plugin = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plugin)
    own = {"_target_", "detach", "resume", "max_num_timeout", "retry"}
    fields = set(plugin.NexaSlurmConf.__dataclass_fields__)
    assert fields - own == set(ResourcesSpec.model_fields)
    assert set(plugin.Retry.__dataclass_fields__) == set(RetrySpec.model_fields)
