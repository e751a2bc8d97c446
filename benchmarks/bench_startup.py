"""How long the commands take that people type all day, as a multiple of `python -c pass`.

    python benchmarks/bench_startup.py

In a project of 50 steps, output piped. Targets: `--help` at most 8, the others at most 9.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from projects import median, nexa, timed, write_pipeline

ROUNDS = 11
COMMANDS = (("--help",), ("status",), ("logs", "s0"), ("cancel",), ("models", "list"), ("list",))


def main() -> None:
    """Print each command's time and multiple."""
    with tempfile.TemporaryDirectory(dir=".") as folder:
        project = Path(folder)
        timed(nexa("run", write_pipeline(project, 50).name), project)
        rounds: dict[str, list[float]] = {}
        for _ in range(ROUNDS):
            bare = timed([sys.executable, "-c", "pass"], project).wall_s
            rounds.setdefault("python -c pass", []).append(bare)
            for command in COMMANDS:
                took = timed(nexa(*command), project).wall_s
                rounds.setdefault(" ".join(command), []).append(took)
    floor = median(rounds["python -c pass"])
    print(f"median of {ROUNDS}")
    for name, times in rounds.items():
        print(f"  {name:16} {1000 * median(times):6.1f} ms   {median(times) / floor:5.1f} times")


if __name__ == "__main__":
    main()
