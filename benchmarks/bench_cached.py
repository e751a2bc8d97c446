"""A cached re-run and a plan of 10,000 steps, beside reading the same results by a bare loop.

    python benchmarks/bench_cached.py [STEPS]

Peer figures for orientation, at 200 steps: dvc 9.3 ms a step, snakemake 6.1, doit 0.5. Targets: at
most 0.15 ms a step all told, planning under 1.5 s, peak memory under 120 MB.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

from projects import median, nexa, timed, write_pipeline

ROUNDS = 5


def main() -> None:
    """Make the results once, then print what looking at them again takes."""
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with tempfile.TemporaryDirectory(dir=".") as folder:
        project = Path(folder)
        file = write_pipeline(project, steps)
        print(f"making {steps} results …", flush=True)
        timed(nexa("run", file.name), project)
        runs = [timed(nexa("run", file.name), project) for _ in range(ROUNDS)]
        plans = [timed(nexa("plan", file.name), project) for _ in range(ROUNDS)]
        bare = [read_results(project / "artifacts" / ".store") for _ in range(ROUNDS)]
    run_s, plan_s = median([r.wall_s for r in runs]), median([p.wall_s for p in plans])
    print(f"{steps} steps, median of {ROUNDS}")
    print(f"  bare loop over COMPLETE and meta.json  {median(bare):6.2f} s")
    print(f"  nexa-hpc plan                          {plan_s:6.2f} s, target under 1.5 s")
    print(
        f"  nexa-hpc run, all cached               {run_s:6.2f} s, "
        f"{1000 * run_s / steps:.3f} ms a step (target at most 0.15)"
    )
    print(f"  peak memory of the run                 {max(r.peak_mb for r in runs):6.0f} MB")


def read_results(store: Path) -> float:
    """Read what a look at each result must read, and return the seconds."""
    began = time.perf_counter()
    for shard in store.iterdir():
        for artifact in shard.iterdir():
            (artifact / "COMPLETE").read_bytes()
            json.loads((artifact / "meta.json").read_bytes())
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
