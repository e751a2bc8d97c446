"""A sweep `prep` -> `train` -> `eval` whose trainings each wait for leave, in real processes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from conftest import RunCli, child_environment
from flows import until

SCRIPT = """\
import json, sys
from nexa_hpc import Pipeline
points, options = json.loads(sys.argv[1])
sweep = Pipeline.from_yaml("flow.yaml").sweep([{"steps.train.params.x": x} for x in points])
sys.exit(0 if sweep.run(**options).succeeded else 1)
"""


class Gated:
    """The sweep over x in `project`; `train` at x runs until `let_go(x)`, and fails if told to."""

    def __init__(self, project: Path, run_cli: RunCli, **fields: Any) -> None:
        self.project = project
        self.cli = run_cli
        self._gates = project.parent / "gates"
        self._gates.mkdir()
        train = (
            f"echo $PARAM_x >> {self._gates}/begun\n"
            f"while [ ! -e {self._gates}/go.$PARAM_x ]; do sleep 0.1; done\n"
            f"test ! -e {self._gates}/fail.$PARAM_x\necho $PARAM_x > $OUT/x\n"
        )
        steps = [
            self._step("prep", "true"),
            self._step("train", train, after=["prep"], x=0) | {"out": "out/train"} | fields,
            self._step("eval", "true") | {"in": {"train": "out/train"}},
        ]
        document = {"pipeline": {"name": "flow", "steps": steps}}
        (project / "flow.yaml").write_text(json.dumps(document))

    @staticmethod
    def _step(id_: str, command: str, after: Sequence[str] = (), **params: Any) -> dict[str, Any]:
        params = {"command": command, **params}
        return {"id": id_, "uses": "runners.command", "after": list(after), "params": params}

    def start(self, points: Sequence[int], **options: Any) -> subprocess.Popen[bytes]:
        """Run the sweep in the background; `options` are those of `Pipeline.run`."""
        with (self._gates / "printed").open("wb") as out:
            return subprocess.Popen(
                [sys.executable, "-c", SCRIPT, json.dumps([points, options])],
                cwd=self.project,
                env=child_environment(),
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def let_go(self, *points: int) -> None:
        """Let the trainings at `points` come to their ends."""
        for x in points:
            (self._gates / f"go.{x}").touch()

    def let_fail(self, x: int, *, fails: bool = True) -> None:
        """Have the training at `x` fail when it is let go; or no more."""
        flag = self._gates / f"fail.{x}"
        flag.touch() if fails else flag.unlink()

    def begun(self) -> list[int]:
        """Return at which points a training has begun, each time that one has."""
        file = self._gates / "begun"
        return sorted(map(int, file.read_text().split())) if file.exists() else []

    def wait_for(self, *points: int) -> None:
        """Return when trainings have begun at `points`, and no others."""
        until(lambda: self.begun() == sorted(points), f"trainings to begin at {points}")

    def steps(self) -> dict[str, dict[str, Any]]:
        """Return what `status --json` says of each step."""
        found: dict[str, dict[str, Any]] = json.loads(self.cli("status", "--json").stdout)["steps"]
        return found

    def now(self) -> dict[str, str]:
        """Return step -> state."""
        return {step: entry["status"] for step, entry in self.steps().items()}

    def at(self, x: int) -> tuple[str, str]:
        """Return the states of `train` and `eval` at `x`."""
        now = self.now()
        return now[f"train@x={x}"], now[f"eval@x={x}"]
