"""`runners.eval` on language models: the loss is transformers' own, text by text."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the extra [hf]")
pytest.importorskip("transformers", reason="needs the extra [hf]")

from hf_tiny import (
    make_task,
    one_thread,
    read_json,
    read_jsonl,
    run_task,
    save_llama,
    sentences,
    write_jsonl,
)

from nexa_hpc.errors import StepError, UserError

pytestmark = pytest.mark.slow

one_thread()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project")
    save_llama(root / "llama")
    texts = [{"text": row["text"]} for row in sentences(30, 3)]
    texts.append({"text": " ".join(["the film is good and the story is fine"] * 9)})
    write_jsonl(root / "texts.jsonl", texts)
    return root


def evaluate(project: Path, name: str, config: str) -> Path:
    file = project / f"{name}.yaml"
    file.write_text(config)
    inputs = {"config": file, "checkpoint": project / "llama", "dataset": project / "texts.jsonl"}
    return run_task(make_task("runners.eval", project, project / name, {}, inputs))


@pytest.fixture(scope="module")
def evaluated(project: Path) -> Path:
    return evaluate(project, "evaluated", "max_length: 16\nbatch_size: 4\n")


def test_perplexity_is_that_of_the_models_own_loss(project: Path, evaluated: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(project / "llama")
    tokenizer = AutoTokenizer.from_pretrained(project / "llama")
    lines = read_jsonl(evaluated / "predictions.jsonl")
    assert len(lines) == 31
    for line in lines[:5]:
        ids = tokenizer(line["text"], return_tensors="pt")["input_ids"][:, :16]
        if ids.shape[1] - 1 == line["tokens"]:
            loss = float(model(input_ids=ids, labels=ids).loss.detach())
            assert line["loss"] == pytest.approx(loss, abs=1e-4)


def test_the_figures_weigh_each_token_the_same(evaluated: Path) -> None:
    lines = read_jsonl(evaluated / "predictions.jsonl")
    tokens = sum(line["tokens"] for line in lines)
    loss = sum(line["loss"] * line["tokens"] for line in lines) / tokens
    metrics = read_json(evaluated / "metrics.json")
    assert metrics["tokens"] == tokens
    assert metrics["loss"] == pytest.approx(loss)
    assert metrics["perplexity"] == pytest.approx(math.exp(loss))
    assert metrics["bits_per_byte"] > 0


def test_a_text_longer_than_the_model_reads_is_read_in_pieces(evaluated: Path) -> None:
    longest = read_jsonl(evaluated / "predictions.jsonl")[-1]
    assert longest["tokens"] > 16


def test_batches_change_no_loss(project: Path, evaluated: Path) -> None:
    one_by_one = evaluate(project, "one_by_one", "max_length: 16\nbatch_size: 1\n")
    metrics = read_json(one_by_one / "metrics.json")
    assert metrics == pytest.approx(read_json(evaluated / "metrics.json"), abs=1e-5)


def test_the_report_shows_perplexity_and_the_hardest_texts(evaluated: Path) -> None:
    page = (evaluated / "report.html").read_text()
    for words in ("Perplexity", "Bits per byte", "Hardest texts", "Easiest texts"):
        assert words in page
    assert (evaluated / "losses.png").read_bytes().startswith(b"\x89PNG")


def test_only_the_metrics_asked_for_are_given(project: Path) -> None:
    out = evaluate(project, "chosen", "metrics: [perplexity]\n")
    assert set(read_json(out / "metrics.json")) == {"perplexity", "n", "tokens"}


def test_the_linear_baseline_is_refused_for_language_models(project: Path) -> None:
    with pytest.raises(UserError, match="is for text classification"):
        evaluate(project, "baseline", "baseline: tfidf_logreg\n")


def test_texts_too_short_to_predict_anything_are_refused(project: Path) -> None:
    with pytest.raises(StepError, match="long enough"):
        evaluate(project, "short", "max_length: 1\n")
