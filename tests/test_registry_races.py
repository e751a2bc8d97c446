"""The registry under several processes, and under kill -9."""

from __future__ import annotations

import multiprocessing
import random
import subprocess
import sys
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from conftest import child_environment

from nexa_hpc.core.publishing import create_artifact
from nexa_hpc.core.registry import Registry
from nexa_hpc.errors import RegistryError, UnknownNameError

_SPAWN = multiprocessing.get_context("spawn")
REGISTRATIONS = 50
ROUNDS = 25
KILLS = 12


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    create_artifact(tmp_path / "model", lambda out: (out / "model.bin").write_text("weights"))
    return Registry(tmp_path / ".registry")


def _register(folder: Path, start: Barrier, who: int) -> None:
    registry = Registry(folder)
    start.wait()
    for number in range(REGISTRATIONS):
        registry.register("m", folder.parent / "model", {"who": who, "n": number})


def _promote(folder: Path, start: Barrier, who: int) -> None:
    registry = Registry(folder)
    start.wait()
    for number in range(1, ROUNDS + 1):
        registry.promote("m", 2 * number - who, "prod")


def _promote_or_delete(folder: Path, start: Barrier, who: int) -> None:
    registry = Registry(folder)
    for number in range(1, ROUNDS + 1):
        start.wait()
        try:
            registry.promote("m", number, "prod") if who else registry.delete("m", number)
        except RegistryError:
            pass  # One of the two, or both, are refused: that is what is tested.
        except UnknownNameError as error:
            assert "was deleted" in str(error), error  # before promoting it began


def _two(target, folder: Path) -> None:
    start = _SPAWN.Barrier(2)
    both = [_SPAWN.Process(target=target, args=(folder, start, who)) for who in (0, 1)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]


def test_registrations_of_two_processes_all_get_versions_of_their_own(registry: Registry) -> None:
    _two(_register, registry.folder)
    versions = registry.versions("m")
    assert [v.number for v in versions] == [*range(1, 2 * REGISTRATIONS + 1)]
    assert {(v.meta["who"], v.meta["n"]) for v in versions} == {
        (who, n) for who in (0, 1) for n in range(REGISTRATIONS)
    }


def test_promotions_of_two_processes_make_one_history_with_all_of_them(registry: Registry) -> None:
    for _ in range(2 * ROUNDS):
        registry.register("m", registry.folder.parent / "model")
    _two(_promote, registry.folder)
    history = registry.history("m", "prod")
    assert [move.sequence for move in history] == [*range(1, 2 * ROUNDS + 1)]
    assert sorted(move.version for move in history) == [*range(1, 2 * ROUNDS + 1)]
    assert [move.previous for move in history] == [None, *(m.version for m in history[:-1])]
    assert registry.resolve("m@prod").number == history[-1].version


def test_deleting_and_promoting_at_once_never_leaves_a_tag_at_a_deleted_version(
    registry: Registry,
) -> None:
    for _ in range(ROUNDS):
        registry.register("m", registry.folder.parent / "model")
    _two(_promote_or_delete, registry.folder)
    live = {version.number for version in registry.versions("m")}
    assert set(registry.tags("m").values()) <= live


_PROMOTE_FOR_EVER = """
import itertools, sys
from nexa_hpc.core.registry import Registry
registry = Registry(sys.argv[1])
for number in itertools.cycle((1, 2)):
    registry.promote("m", number, "prod")
    print(number, flush=True)
"""


def test_a_promotion_killed_at_any_moment_leaves_the_tag_old_or_new(registry: Registry) -> None:
    for _ in range(2):
        registry.register("m", registry.folder.parent / "model")
    moment = random.Random(7)
    for _ in range(KILLS):
        command = [sys.executable, "-c", _PROMOTE_FOR_EVER, str(registry.folder)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=child_environment()
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            # The kill is to come at any point of a promotion, which takes about 2 ms.
            time.sleep(moment.random() * 0.01)
            process.kill()
            said = process.stdout.read().split()
        history = registry.history("m", "prod")
        assert [move.sequence for move in history] == [*range(1, len(history) + 1)]
        assert registry.resolve("m@prod").number in (1, 2)
        if said:
            # What the process said it had done is done; the next move may have been, too.
            assert int(said[-1]) in [move.version for move in history[-2:]]
    assert registry.promote("m", 1, "prod").version == 1
