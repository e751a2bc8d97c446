"""Tiny real models, tokenizers and datasets for the tests of training and evaluation."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nexa_hpc.core.checkpoints import Checkpoint
from nexa_hpc.core.handlers import Progress, StepView, Task, find_handler

GOOD = ("good", "great", "fine", "lovely")
BAD = ("bad", "awful", "poor", "dull")
OTHER = ("the", "film", "story", "is", "a", "and", "very", "with", "cast", "plot")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[EOS]")


def one_thread() -> None:
    """Let torch compute on one thread: several would wait for each other in models this small."""
    import torch

    torch.set_num_threads(1)


def make_tokenizer() -> Any:
    """Return a WordPiece tokenizer that knows the words above."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *GOOD, *BAD, *OTHER])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        eos_token="[EOS]",
        model_max_length=32,
    )


def save_bert(folder: Path) -> Path:
    """Save a BERT encoder of two layers, 32 wide, and its tokenizer."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(1)
    tokenizer = make_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_llama(folder: Path, hidden_size: int = 32) -> Path:
    """Save a causal language model of two layers and its tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sentences(n: int, seed: int) -> list[dict[str, str]]:
    """Return `n` labelled sentences whose one telling word decides the label."""
    chance = random.Random(seed)
    rows = []
    for number in range(n):
        label, words = (("positive", GOOD), ("negative", BAD))[number % 2]
        text = [*chance.choices(OTHER, k=chance.randint(3, 9)), chance.choice(words)]
        chance.shuffle(text)
        rows.append({"text": " ".join(text), "label": label})
    return rows


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write `rows` as JSONL."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_splits(folder: Path, train: int = 160, held_out: int = 40) -> Path:
    """Write a folder with train, validation and test sentences."""
    write_jsonl(folder / "train.jsonl", sentences(train, 1))
    write_jsonl(folder / "validation.jsonl", sentences(held_out, 2))
    write_jsonl(folder / "test.jsonl", sentences(held_out, 3))
    return folder


def step_view(
    uses: str,
    project: Path,
    params: Mapping[str, Any],
    inputs: Mapping[str, str] | None = None,
    **other: Any,
) -> StepView:
    """Return a declared step as planning shows it to a handler."""
    fields = {"backend": None, "scheduler": None, "outputs": {}, "resources": {}, **other}
    return StepView(
        id="step", uses=uses, params=params, inputs=inputs or {}, project=project, **fields
    )


def make_task(
    uses: str,
    project: Path,
    out: Path,
    params: Mapping[str, Any],
    inputs: Mapping[str, Path],
    *,
    resume: Checkpoint | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Task:
    """Return one attempt at a step, with its folders made, as the worker makes it."""
    work_dir = out.with_name(out.name + ".work")
    out.mkdir(parents=True)
    work_dir.mkdir()
    return Task(
        step_id=out.name,
        uses=uses,
        backend=None,
        key="0" * 64,
        attempt=1,
        params=params,
        inputs=inputs,
        revisions={},
        outputs={"out": out},
        work_dir=work_dir,
        resume=resume,
        resources={},
        project=project,
        registry=project / "registry",
        on_progress=on_progress,
    )


def run_task(task: Task) -> Path:
    """Run `task` and return its output folder."""
    find_handler(task.uses, task.project).run(task)
    return task.out_dir


def read_json(path: Path) -> Any:
    """Return the JSON value in `path`."""
    return json.loads(path.read_text())


def read_jsonl(path: Path) -> list[Any]:
    """Return the JSON value on each line of `path`."""
    return [json.loads(line) for line in path.read_text().splitlines()]
