"""A sweep of 1,000 points over 3 steps: composed, keyed and planned, beside Hydra's own compose.

    python benchmarks/bench_sweep.py [POINTS]

Target: under 2 s beyond start-up, and under 100 MB. Every step differs at every point, which is the
most that there can be to do. Hydra composes the first few points, for the scale.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from projects import median, nexa, timed

ROUNDS = 3
COMPOSED = 20
PIPELINE = """\
{defaults}pipeline:
  name: many
  steps:
    - {{id: prepare, uses: runners.command, params: {{n: 0, command: ":"}}}}
    - {{id: train, uses: runners.command, in: {{data: prepare}}, params: {{lr: 0.1, command: ":"}}}}
    - {{id: eval, uses: runners.command, in: {{model: train}}, params: {{k: 1, command: ":"}}}}
"""
PEER = """\
import sys, time
from hydra import compose, initialize_config_dir
with initialize_config_dir(sys.argv[1], version_base="1.3"):
    compose("composed")
    began = time.perf_counter()
    for n in range({count}):
        compose("composed", [f"pipeline.steps.0.params.n={{n}}"])
    print((time.perf_counter() - began) / {count})
"""


def main() -> None:
    """Print what planning a sweep takes beyond what planning one point takes."""
    points = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000
    with tempfile.TemporaryDirectory(dir=".") as folder:
        project = Path(folder)
        (project / "nexa.yaml").touch()
        (project / "many.yaml").write_text(PIPELINE.format(defaults=""))
        (project / "composed.yaml").write_text(PIPELINE.format(defaults="defaults: [_self_]\n"))
        print(f"{points} points of 3 steps, median of {ROUNDS}")
        for name in ("many.yaml", "composed.yaml"):
            _measure(project, name, points)
        peer = [sys.executable, "-c", PEER.format(count=COMPOSED), str(project.resolve())]
        each_s = float(subprocess.run(peer, check=True, capture_output=True, text=True).stdout)
    print(f"  Hydra's compose, at each point     {points * each_s:7.2f} s")


def _measure(project: Path, name: str, points: int) -> None:
    def plan(count: int) -> list[str]:
        swept = f"steps.prepare.params.n=range(0,{count})"
        return nexa("plan", name, "-m", swept, "--json")

    one = [timed(plan(1), project) for _ in range(ROUNDS)]
    all_ = [timed(plan(points), project) for _ in range(ROUNDS)]
    start_s = median([t.wall_s for t in one])
    beyond_s = median([t.wall_s for t in all_]) - start_s
    peak_mb = max(t.peak_mb for t in all_)
    kind = "with `defaults:`" if name == "composed.yaml" else "a plain file"
    print(
        f"  nexa-hpc plan -m, {kind:16} {beyond_s:7.2f} s beyond start-up ({start_s:.2f} s), "
        f"target under 2; peak {peak_mb:.0f} MB, target under 100"
    )


if __name__ == "__main__":
    main()
