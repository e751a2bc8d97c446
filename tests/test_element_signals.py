"""Signals that an element gets before its step has begun are told to the step all the same."""

from __future__ import annotations

import time
from pathlib import Path

import planned

from nexa_hpc.core.ranks import ALONE
from nexa_hpc.core.records import claim
from nexa_hpc.element.child import TERMINATION, Signals, run_forked


def test_a_signal_from_before_the_fork_stops_the_step(project: Path) -> None:
    run, _ = planned.pipeline(project, planned.command("s", "sleep 60")).start()
    assert claim(run.paths.records(run.instances["s"].key), 1, {"run": run.id})
    signals = Signals()
    signals.got.add(TERMINATION)
    began = time.monotonic()
    code = run_forked(run, "s", 1, project / "s.log", signals, ALONE)
    assert (code, time.monotonic() - began < 50) == (130, True)
