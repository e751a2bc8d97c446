"""Movie-review sentences with human ratings -> train, validation and test splits for sentiment.

    python pipelines/prepare_reviews.py --archive data/downloads/vaderSentiment-0.5.zip --out FOLDER

The archive is the source package vaderSentiment 0.5 (MIT). Inside it lie 10,605 sentences of movie
reviews, each with the mean of several people's ratings from -4 (most negative) to 4: C. Hutto and
E. Gilbert, ICWSM 2014. A sentence is positive above 0 and negative below; those rated within 0.5 of
0, on which people do not agree, and exact duplicates are left out. The split is drawn with a fixed
seed, so anyone gets the same one. Standard library alone.
"""

from __future__ import annotations

import argparse
import html
import io
import json
import random
import tarfile
import zipfile
from pathlib import Path

RATINGS_ARCHIVE = "additional_resources/hutto_ICWSM_2014.tar.gz"
RATINGS_FILE = "movieReviewSnippets_GroundTruth.txt"
NEUTRAL_BELOW = 0.5
SEED = 13
HELD_OUT = 0.1
"""The part of all rows that validation and test get each."""

Row = dict[str, "str | float"]


def main() -> None:
    """Read the archive, write the splits and their counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archive", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    lines = read_ratings(arguments.archive)
    rows, counts = select_rows(lines)
    splits = split_rows(rows)
    for name, part in splits.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        (arguments.out / f"{name}.jsonl").write_text(text, encoding="utf-8")
        counts[f"{name}_rows"] = len(part)
    (arguments.out / "metrics.json").write_text(json.dumps(counts, indent=1) + "\n")
    print("  ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in counts.items()))


def read_ratings(archive: Path) -> list[str]:
    """Return the lines of the ratings: id, mean rating and sentence, with tabs between them."""
    with zipfile.ZipFile(archive) as package:
        (name,) = (name for name in package.namelist() if name.endswith(RATINGS_ARCHIVE))
        inner = io.BytesIO(package.read(name))
    with tarfile.open(fileobj=inner) as ratings:
        (member,) = (member for member in ratings if Path(member.name).name == RATINGS_FILE)
        file = ratings.extractfile(member)
        assert file is not None
        return file.read().decode("utf-8").splitlines()


def select_rows(lines: list[str]) -> tuple[list[Row], dict[str, int]]:
    """Return the labelled sentences, and how many were read and left out."""
    counts = {"sentences": len(lines), "near_neutral": 0, "duplicates": 0}
    seen: set[str] = set()
    rows: list[Row] = []
    for line in lines:
        _, rating_text, sentence = line.split("\t", 2)
        rating, text = float(rating_text), " ".join(html.unescape(sentence).split())
        if abs(rating) < NEUTRAL_BELOW:
            counts["near_neutral"] += 1
        elif text in seen:
            counts["duplicates"] += 1
        else:
            seen.add(text)
            label = "positive" if rating > 0 else "negative"
            rows.append({"text": text, "label": label, "rating": round(rating, 4)})
    return rows, counts


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
