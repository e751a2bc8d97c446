"""`runners.eval` on classifiers: figures, predictions, plots, report, with tiny real models."""

from __future__ import annotations

import html.parser
import math
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the extra [hf]")
pytest.importorskip("transformers", reason="needs the extra [hf]")

from hf_tiny import (
    make_task,
    one_thread,
    read_json,
    read_jsonl,
    run_task,
    save_bert,
    sentences,
    write_jsonl,
    write_splits,
)

from nexa_hpc.errors import StepError, UserError

pytestmark = pytest.mark.slow

one_thread()

TRAINING: dict[str, Any] = {
    "num_train_epochs": 12,
    "per_device_train_batch_size": 16,
    "learning_rate": 3e-3,
    "max_train_rows": 120,
    "use_cpu": True,
    "save_strategy": "no",
}
CONFIG = "title: How good is it?\nsplit: test\nbaseline: tfidf_logreg\nbatch_size: 16\n"


class Project:
    """A project with a dataset and a checkpoint trained on it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.reviews = write_splits(root / "data" / "reviews")
        self.bert = save_bert(root / "bert")
        self.checkpoint = self.train("trained")

    def train(self, name: str, **params: Any) -> Path:
        inputs = {"model": self.bert, "dataset": self.reviews}
        return run_task(
            make_task("runners.train", self.root, self.root / name, {**TRAINING, **params}, inputs)
        )

    def evaluate(self, name: str, config: str = CONFIG, **inputs: Path) -> Path:
        file = self.root / f"{name}.yaml"
        file.write_text(config)
        task = make_task(
            "runners.eval", self.root, self.root / name, {}, {"config": file, **inputs}
        )
        return run_task(task)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def evaluated(made: Project) -> Path:
    return made.evaluate("evaluated", checkpoint=made.checkpoint, dataset=made.reviews)


def test_the_figures_are_flat_numbers_beside_those_of_the_baseline(evaluated: Path) -> None:
    metrics = read_json(evaluated / "metrics.json")
    assert all(type(value) in (int, float) and math.isfinite(value) for value in metrics.values())
    assert metrics["n"] == 40
    assert metrics["accuracy"] >= 0.9
    assert metrics["baseline_accuracy"] >= 0.9
    assert metrics["margin"] == pytest.approx(metrics["accuracy"] - metrics["baseline_accuracy"])
    assert metrics["support_negative"] == metrics["support_positive"] == 20
    assert {"macro_f1", "f1_negative", "recall_positive", "calibration_error"} <= set(metrics)


def test_the_figures_agree_with_the_predictions(evaluated: Path, made: Project) -> None:
    predictions = read_jsonl(evaluated / "predictions.jsonl")
    rows = read_jsonl(made.reviews / "test.jsonl")
    assert [(p["text"], p["label"]) for p in predictions] == [(r["text"], r["label"]) for r in rows]
    right = sum(p["predicted"] == p["label"] for p in predictions)
    assert read_json(evaluated / "metrics.json")["accuracy"] == pytest.approx(right / 40)
    assert all(0.5 <= p["probability"] <= 1 for p in predictions)


def test_batches_change_no_prediction(evaluated: Path, made: Project) -> None:
    one_by_one = made.evaluate(
        "one_by_one",
        CONFIG.replace("batch_size: 16", "batch_size: 1"),
        checkpoint=made.checkpoint,
        dataset=made.reviews,
    )
    for one, many in zip(
        read_jsonl(one_by_one / "predictions.jsonl"),
        read_jsonl(evaluated / "predictions.jsonl"),
        strict=True,
    ):
        assert one == {**many, "probability": pytest.approx(many["probability"], abs=1e-4)}


def test_the_report_holds_its_figures_and_pictures_and_asks_for_nothing_else(
    evaluated: Path,
) -> None:
    page = (evaluated / "report.html").read_text()
    for words in ("How good is it?", "Accuracy", "Baseline", "Margin", "Confusion matrix"):
        assert words in page
    assert page.count("data:image/png;base64,") == 2
    assert not re.search(r'(src|href)="(?!data:)', page)
    html.parser.HTMLParser().feed(page)


def test_the_plots_lie_beside_the_report(evaluated: Path) -> None:
    for name in ("confusion_matrix.png", "calibration.png"):
        assert (evaluated / name).read_bytes().startswith(b"\x89PNG")


def test_text_is_never_taken_for_markup(made: Project) -> None:
    rows = [
        {"text": f"<script>bad()</script> {row['text']}", "label": "positive"}
        for row in sentences(8, 5)
    ]
    rows[0]["label"] = "negative"
    file = write_jsonl(made.root / "markup.jsonl", rows)
    out = made.evaluate("markup", "batch_size: 4\n", checkpoint=made.checkpoint, dataset=file)
    assert "<script>" not in (out / "report.html").read_text()


def test_the_baseline_sees_the_rows_that_the_model_was_trained_on(
    made: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    made.evaluate("same_rows", checkpoint=made.checkpoint, dataset=made.reviews)
    assert "on the same 120 rows" in capsys.readouterr().out


def test_a_baseline_without_training_rows_is_refused(made: Project) -> None:
    with pytest.raises(StepError, match="no train split"):
        made.evaluate("no_train", checkpoint=made.checkpoint, dataset=made.reviews / "test.jsonl")


def test_only_the_metrics_asked_for_are_given(made: Project) -> None:
    config = "split: validation\nmetrics: [accuracy]\n"
    out = made.evaluate("chosen", config, checkpoint=made.checkpoint, dataset=made.reviews)
    assert set(read_json(out / "metrics.json")) == {"accuracy", "n"}


def test_a_model_and_a_dataset_named_in_the_config_are_found_from_the_project_root(
    made: Project,
) -> None:
    out = made.evaluate("by_config", "model: trained\ndataset: data/reviews\nmax_rows: 10\n")
    assert read_json(out / "metrics.json")["n"] == 10


def test_a_path_in_the_config_that_is_not_there_is_refused(made: Project) -> None:
    with pytest.raises(UserError, match=r"no such file or folder: data/nowhere\.jsonl"):
        made.evaluate("nowhere", "dataset: data/nowhere.jsonl\n", checkpoint=made.checkpoint)


def test_an_adapter_is_judged_on_its_own_base(made: Project) -> None:
    pytest.importorskip("peft", reason="needs the extra [hf]")
    lora = {"r": 8, "lora_alpha": 32, "target_modules": ["query", "value"]}
    adapter = made.train("adapter", lora=lora, learning_rate=2e-2)
    out = made.evaluate("adapted", checkpoint=adapter, dataset=made.reviews)
    measured = read_json(out / "metrics.json")["accuracy"]
    merged = made.train("merged", lora={**lora, "merge": True}, learning_rate=2e-2)
    same = made.evaluate("merged_eval", checkpoint=merged, dataset=made.reviews)
    assert measured == read_json(same / "metrics.json")["accuracy"] > 0.5


def test_an_adapter_on_another_base_is_refused(made: Project) -> None:
    pytest.importorskip("peft", reason="needs the extra [hf]")
    adapter = made.train("stranger", lora={"target_modules": ["query"]}, max_steps=1)
    said = read_json(adapter / "base_model.json")
    (adapter / "base_model.json").write_text(
        f'{{"model": "{said["model"]}", "revision": null, "sha256": "{"0" * 64}"}}'
    )
    with pytest.raises(StepError, match="SHA-256"):
        made.evaluate("refused", checkpoint=adapter, dataset=made.reviews)


def test_labels_that_the_model_does_not_know_are_refused(made: Project) -> None:
    file = write_jsonl(made.root / "odd.jsonl", [{"text": "good film", "label": "splendid"}])
    with pytest.raises(StepError, match="'splendid', which the model does not know"):
        made.evaluate("odd", "split: test\n", checkpoint=made.checkpoint, dataset=file)


def test_rows_without_labels_are_left_out_and_a_split_of_them_is_passed_over(
    made: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = made.root / "hidden"
    write_jsonl(folder / "test.jsonl", [{"text": "good film", "label": None}])
    write_jsonl(folder / "validation.jsonl", sentences(6, 4))
    out = made.evaluate("hidden_eval", "{}\n", checkpoint=made.checkpoint, dataset=folder)
    assert read_json(out / "metrics.json")["n"] == 6
    assert "1 of 1 rows have no label" in capsys.readouterr().out


def test_many_classes_are_drawn_and_reported(made: Project) -> None:
    from nexa_hpc.backends.hf import plots, scoring

    numpy = pytest.importorskip("numpy")
    labels = [f"a rather long class name {number}" for number in range(9)]
    chance = numpy.random.default_rng(1)
    probabilities = chance.dirichlet([0.3] * 9, size=300)
    predictions = scoring.Predictions(
        labels, [("text",)] * 300, chance.integers(0, 9, 300), probabilities
    )
    target = made.root / "many.png"
    plots.draw_confusion(scoring.confusion(predictions), labels, target)
    assert target.stat().st_size > 10_000
    assert len(scoring.per_class(predictions)) == 9


def test_intervals_hold_the_figure_and_narrow_with_more_rows() -> None:
    from nexa_hpc.backends.hf.scoring import interval_95

    low, high = interval_95(0.9, 100)
    assert low < 0.9 < high
    assert interval_95(1.0, 50)[1] == 1.0
    wide, narrow = interval_95(0.9, 100), interval_95(0.9, 10_000)
    assert narrow[1] - narrow[0] < wide[1] - wide[0]
