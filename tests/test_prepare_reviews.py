"""The demo's first step: what it keeps of the ratings, and that everybody gets the same split."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from conftest import REPOSITORY
from hf_tiny import read_json, read_jsonl

SCRIPT = REPOSITORY / "pipelines" / "prepare_reviews.py"
ARCHIVE = REPOSITORY / "data" / "downloads" / "vaderSentiment-0.5.zip"
RATINGS = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"


def write_archive(path: Path, lines: list[str]) -> Path:
    """Write a source package that holds `lines` as ratings, as the real one does."""
    ratings = "\r\n".join(lines).encode()
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as tar:
        member = tarfile.TarInfo(RATINGS)
        member.size = len(ratings)
        tar.addfile(member, io.BytesIO(ratings))
    with zipfile.ZipFile(path, "w") as package:
        name = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"
        package.writestr(name, inner.getvalue())
    return path


def prepare(archive: Path, out: Path) -> Path:
    out.mkdir()
    subprocess.run(
        [sys.executable, SCRIPT, "--archive", archive, "--out", out],
        check=True,
        capture_output=True,
    )
    return out


def all_rows(out: Path) -> list[dict[str, object]]:
    return [
        row
        for split in ("train", "validation", "test")
        for row in read_jsonl(out / f"{split}.jsonl")
    ]


def test_near_neutral_and_duplicate_sentences_are_left_out(tmp_path: Path) -> None:
    archive = write_archive(
        tmp_path / "package.zip",
        [
            "1\t2.5\tLovely &amp; warm",
            "2\t-0.4\tNeither here nor there",
            "3\t-3\tDull",
            "4\t-2\tDull",
        ],
    )
    out = prepare(archive, tmp_path / "out")
    rows = sorted((row["text"], row["label"]) for row in all_rows(out))
    assert rows == [("Dull", "negative"), ("Lovely & warm", "positive")]
    assert read_json(out / "metrics.json") == {
        "sentences": 4, "near_neutral": 1, "duplicates": 1,
        "test_rows": 0, "validation_rows": 0, "train_rows": 2,
    }  # fmt: skip


def test_the_split_is_the_same_for_everybody_and_shares_no_row(tmp_path: Path) -> None:
    lines = [f"{number}\t{2 if number % 2 else -2}\tsentence {number}" for number in range(200)]
    archive = write_archive(tmp_path / "package.zip", lines)
    first, second = prepare(archive, tmp_path / "first"), prepare(archive, tmp_path / "second")
    for split, size in (("train", 160), ("validation", 20), ("test", 20)):
        content = (first / f"{split}.jsonl").read_bytes()
        assert content == (second / f"{split}.jsonl").read_bytes()
        assert len(content.splitlines()) == size
    assert len({json.dumps(row) for row in all_rows(first)}) == 200


@pytest.mark.skipif(not ARCHIVE.is_file(), reason="`make demo` downloads the ratings")
def test_the_real_ratings_give_the_counts_that_the_readme_states(tmp_path: Path) -> None:
    out = prepare(ARCHIVE, tmp_path / "out")
    assert read_json(out / "metrics.json") == {
        "sentences": 10605, "near_neutral": 533, "duplicates": 2,
        "test_rows": 1007, "validation_rows": 1007, "train_rows": 8056,
    }  # fmt: skip
