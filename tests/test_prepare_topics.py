"""The BBC pipeline's first step: articles in folders by topic become labelled splits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from conftest import REPOSITORY
from hf_tiny import read_json, read_jsonl

SCRIPT = REPOSITORY / "pipelines" / "prepare_topics.py"


def prepare(articles: Path, out: Path) -> Path:
    out.mkdir()
    subprocess.run(
        [sys.executable, SCRIPT, "--articles", articles, "--out", out],
        check=True,
        capture_output=True,
    )
    return out


def write_articles(folder: Path) -> Path:
    for topic in ("sport", "tech"):
        (folder / topic).mkdir(parents=True)
        for number in range(20):
            (folder / topic / f"{number:03}.txt").write_text(
                f"An article\n\non {topic} {number}.\n"
            )
    (folder / "tech" / "990.txt").write_text("An article on tech 3.")
    (folder / "tech" / "991.txt").write_bytes(b"It costs \xa35.")
    (folder / "tech" / "992.txt").write_bytes("It costs £6.".encode())
    return folder


def test_articles_become_rows_with_their_folder_as_label(tmp_path: Path) -> None:
    out = prepare(write_articles(tmp_path / "articles"), tmp_path / "out")
    assert read_json(out / "metrics.json") == {
        "articles": 43, "duplicates": 1, "test_rows": 4, "validation_rows": 4, "train_rows": 34,
    }  # fmt: skip
    rows = [r for s in ("train", "validation", "test") for r in read_jsonl(out / f"{s}.jsonl")]
    assert {row["label"] for row in rows} == {"sport", "tech"}
    assert {"It costs £5.", "It costs £6."} <= {row["text"] for row in rows}


def test_the_split_is_the_same_for_everybody(tmp_path: Path) -> None:
    articles = write_articles(tmp_path / "articles")
    first, second = prepare(articles, tmp_path / "first"), prepare(articles, tmp_path / "second")
    for split in ("train", "validation", "test"):
        assert (first / f"{split}.jsonl").read_bytes() == (second / f"{split}.jsonl").read_bytes()
