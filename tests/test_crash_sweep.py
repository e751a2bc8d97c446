"""Killed at any system call, or told no by any, the core keeps its promises.

Every scenario of `crash_scenarios` is struck at each of its points (see `sweep`); a fresh process
then checks what must hold at every moment, does it again undisturbed, and checks that it is done.
The quick tests kill at every point and give each another error in turn; the slow ones give all.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path
from queue import Queue

import pytest
import sweep
from conftest import REPOSITORY, child_environment
from crash_scenarios import CONTROLS, SCENARIOS
from flows import Flow
from sweep import Command, Nursery, Point

from nexa_hpc.core.paths import ProjectPaths
from nexa_hpc.core.records import read_attempts
from nexa_hpc.core.registry import Registry

PROGRAM = [sys.executable, "-S", str(REPOSITORY / "tests/crash_scenarios.py")]
WORKERS = 2

Strike = tuple[Point, str]
Choose = Callable[[list[Point]], Iterator[Strike]]

pytestmark = pytest.mark.skipif(sweep.why_not() is not None, reason=str(sweep.why_not()))


def told(points: list[Point], strikes: list[Strike], wrong: list[str]) -> str:
    """Return the figures of a sweep."""
    failed = sum(": rerun: " in text for text in wrong)
    return (
        f"{len(points)} points, {len(strikes)} strikes, {len(wrong)} violations, "
        f"{failed} of them failed reruns"
    )


class Sweep:
    """The strikes at one scenario."""

    def __init__(self, name: str, tmp_path: Path, nurseries: list[Nursery]) -> None:
        self.name = name
        self.homes = tmp_path
        self.template = tmp_path / "prepared"
        self.template.mkdir()
        {**SCENARIOS, **CONTROLS}[name].prepare(self.template)
        self.free: Queue[Nursery] = Queue()
        for nursery in nurseries:
            self.free.put(nursery)

    def points(self) -> list[Point]:
        """Return the scenario's points."""
        home = self.home("dry")
        nursery = self.free.get()
        points = nursery.points(home, "act", self.name, str(home))
        self.free.put(nursery)
        return points

    def home(self, name: str) -> Path:
        """Return a copy of the prepared folder; links and times are kept."""
        return Path(shutil.copytree(self.template, self.homes / name, symlinks=True))

    def outcome(self, number: int, strike: Strike) -> str:
        """Strike once and return what is wrong, or an empty text."""
        point, fault = strike
        home = self.home(f"home-{number}")
        nursery = self.free.get()
        code = nursery.strike(point, fault, "act", self.name, str(home))
        failed, wrong = nursery.run("judge", self.name, str(home), str(code))
        self.free.put(nursery)
        shutil.rmtree(home)
        return f"{self.name}, {fault} at {point}: {wrong}" if failed or wrong else ""

    def violations(self, strikes: Iterable[Strike]) -> list[str]:
        """Strike at each of `strikes` and return all that is wrong."""
        with ThreadPoolExecutor(WORKERS) as pool:
            found = pool.map(lambda args: self.outcome(*args), enumerate(strikes))
            return [wrong for wrong in found if wrong]


@pytest.fixture(scope="module")
def nurseries() -> Iterator[list[Nursery]]:
    made = [
        Nursery(PROGRAM, sweep.plain_environment(PYTHONPATH=str(REPOSITORY)))
        for _ in range(WORKERS)
    ]
    yield made
    for nursery in made:
        nursery.close()


def few(points: list[Point]) -> Iterator[Strike]:
    """Yield a kill at every point that changes something, and at each point one of the errors."""
    for point, turn in zip(points, cycle(range(len(sweep.FULL + sweep.FLAKY))), strict=False):
        errors = [fault for fault in point.faults() if fault != sweep.KILL]
        if point.mutating:
            yield point, sweep.KILL
            yield point, errors[turn % len(errors)]


def every(points: list[Point]) -> Iterator[Strike]:
    """Yield every fault at every point."""
    for point in points:
        for fault in point.faults():
            yield point, fault


@pytest.fixture
def swept(
    tmp_path: Path, nurseries: list[Nursery], capsys: pytest.CaptureFixture[str]
) -> Callable[[str, Choose], None]:
    """Sweep a scenario, print the figures, and assert that nothing was wrong."""

    def sweep_it(name: str, choose: Choose) -> None:
        scenario = Sweep(name, tmp_path, nurseries)
        points = scenario.points()
        strikes = list(choose(points))
        wrong = scenario.violations(strikes)
        with capsys.disabled():
            print(f"\n{name}: {told(points, strikes, wrong)}", end=" ")
        assert not wrong, "\n".join(wrong)

    return sweep_it


@pytest.mark.parametrize("name", SCENARIOS)
def test_struck_at_any_change_it_keeps_its_promises(
    name: str, swept: Callable[[str, Choose], None]
) -> None:
    swept(name, few)


def test_the_sweep_catches_a_naive_publisher(tmp_path: Path, nurseries: list[Nursery]) -> None:
    scenario = Sweep("Naive", tmp_path, nurseries)
    wrong = "\n".join(scenario.violations(few(scenario.points())))
    assert "KILL" in wrong and "COMPLETE over weights is gone" in wrong
    assert "silent success" in wrong


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_struck_in_every_way_at_every_point_it_keeps_its_promises(
    name: str, swept: Callable[[str, Choose], None]
) -> None:
    swept(name, every)


class WholeRun:
    """`nexa-hpc run` of command → command → register, killed at one point and resumed."""

    def __init__(self, home: Path) -> None:
        self.project = home / "project"
        self.project.mkdir(parents=True)
        (self.project / "nexa.yaml").touch()
        self.flow = Flow(self.project)
        register = {"uses": "core.registry.register", "params": {"name": "words", "uri": "b"}}
        self.flow.write(
            self.flow.step("a", "echo 1 > $OUT/x", out="out/a"),
            self.flow.step("b", "cat $IN_input/x > $OUT/x", out="out/b", **{"in": "out/a"}),
            {"id": "register", **register},
        )

    def command(self, verb: str) -> Command:
        words = [sys.executable, "-m", "nexa_hpc", verb, self.flow.file]
        return Command(words, self.project, child_environment(**sweep.plain_environment()))

    def published(self) -> list[str]:
        """Return the steps whose results are in the store."""
        store = self.project / "artifacts/.store"
        sealed = [p for p in store.glob("??/*/COMPLETE") if ".tmp." not in p.parent.name]
        metas = [json.loads((place.parent / "meta.json").read_text()) for place in sealed]
        return [meta["made_by"]["step"] for meta in metas]

    def outcome(self, point: Point) -> str:
        """Kill at `point`, resume, and return what is wrong, or an empty text."""
        killed = self.command("run").strike(point, sweep.KILL)
        if killed.returncode != -signal.SIGKILL:
            return f"{point}: not reached: {killed.stdout}{killed.stderr}"
        before = {step: self.flow.count(step) for step in self.published()}
        began = (self.project / ".nexa_state/flow/runs/flow-1").exists()
        resumed = self.command("resume" if began else "run").run()
        if resumed.returncode:
            return f"{point}: rerun: {resumed.stdout}{resumed.stderr}"
        try:
            self.judge(before)
        except Exception:
            return f"{point}: {traceback.format_exc(limit=-3)}{resumed.stdout}"
        return ""

    def judge(self, before: dict[str, int]) -> None:
        """Assert that all is done and nothing of it twice."""
        states = self.flow.states()
        assert states.pop("register") in ("COMPLETED", "SKIPPED")
        assert states == {"a": "COMPLETED", "b": "COMPLETED"}
        assert {step: self.flow.count(step) for step in before} == before
        assert (self.project / "out/b/x").read_text() == "1\n"
        paths = ProjectPaths.at(self.project)
        assert [v.number for v in Registry(paths.registry).versions("words")] == [1]
        for folder in (paths.state / "records").glob("??/*"):
            ends = [a.end["state"] for a in read_attempts(folder) if a.end is not None]
            # An effect is asked again in each round; SKIPPED says that there was nothing to do.
            assert ends.count("COMPLETED") <= 1, ends


def _kill_whole_runs(tmp_path: Path, most: int, capsys: pytest.CaptureFixture[str]) -> None:
    dry = WholeRun(tmp_path / "run-dry")
    points = [p for p in dry.command("run").points(dry.project) if p.mutating]
    every = -(-len(points) // most)
    chosen = [(tmp_path / f"run-{n:03}", point) for n, point in enumerate(points[::every])]
    with ThreadPoolExecutor(WORKERS) as pool:
        found = list(pool.map(lambda args: WholeRun(args[0]).outcome(args[1]), chosen))
    wrong = [text for text in found if text]
    strikes = [(point, sweep.KILL) for _, point in chosen]
    with capsys.disabled():
        print(f"\nwhole run: {told(points, strikes, wrong)}", end=" ")
    assert not wrong, "\n".join(wrong)


def test_a_run_killed_at_some_changes_is_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _kill_whole_runs(tmp_path, 8, capsys)


@pytest.mark.slow
def test_a_run_killed_at_many_changes_is_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _kill_whole_runs(tmp_path, 80, capsys)
