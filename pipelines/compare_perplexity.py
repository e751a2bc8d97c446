"""The perplexity on held-out text before and after a training; fails unless it has fallen.

    python pipelines/compare_perplexity.py --before FOLDER --after FOLDER --out FOLDER

Standard library alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def main() -> None:
    """Read both evaluations, write what changed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("before", "after", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    arguments = parser.parse_args()
    before, after = (
        json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["perplexity"]
        for folder in (arguments.before, arguments.after)
    )
    metrics = {
        "perplexity_before": before,
        "perplexity_after": after,
        "perplexity_ratio": after / before,
    }
    (arguments.out / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    print(f"perplexity on held-out chats: {before:.2f} -> {after:.2f}")
    if after >= before:
        sys.exit("the training made it no better")


if __name__ == "__main__":
    main()
