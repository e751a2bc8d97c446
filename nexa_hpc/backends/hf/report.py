"""report.html: an evaluation on one page that needs no other file and no network.

Called by evaluation, after the plots are drawn. The page is `report.html.j2`; this module decides
what it says.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from nexa_hpc.backends.hf import generation, perplexity, scoring
from nexa_hpc.backends.hf.generation import Scored
from nexa_hpc.backends.hf.perplexity import TextLoss
from nexa_hpc.backends.hf.scoring import ClassFigures, Predictions

_EXAMPLES = 12
_LONGEST_TEXT = 400


@dataclass(frozen=True)
class Facts:
    """What was evaluated, for the head and the foot of the page."""

    title: str
    model: str
    dataset: str
    split: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Tile:
    """A headline figure."""

    label: str
    value: str
    note: str
    strong: bool = False


@dataclass(frozen=True)
class Plot:
    """A picture, embedded."""

    title: str
    note: str
    url: str


@dataclass(frozen=True)
class Examples:
    """A table of single texts: for each, words about it and the text itself."""

    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, ...]]
    texts: int = 1
    """How many columns, the last ones, hold whole texts."""


@dataclass(frozen=True)
class Page:
    """Everything on the page."""

    facts: Facts
    tiles: Sequence[Tile]
    summary: str
    plots: Sequence[Plot]
    classes: Sequence[ClassFigures] = ()
    examples: Sequence[Examples] = field(default=())


def write_classifier_report(
    out_dir: Path, facts: Facts, predictions: Predictions, baseline: Predictions | None
) -> None:
    """Write the report of a classifier, beside the plots that `out_dir` holds already."""
    plots = [
        Plot(
            "Confusion matrix",
            "Rows with each true label, by the label predicted.",
            _embedded(out_dir / "confusion_matrix.png"),
        ),
        Plot(
            "Calibration",
            "On the dashed line, the model is right as often as its confidence says.",
            _embedded(out_dir / "calibration.png"),
        ),
    ]
    page = Page(
        facts,
        tiles=_classifier_tiles(predictions, baseline),
        summary=_classifier_summary(predictions, baseline),
        plots=plots,
        classes=scoring.per_class(predictions),
        examples=[_mistakes(predictions)],
    )
    _write(out_dir, page)


def _classifier_tiles(predictions: Predictions, baseline: Predictions | None) -> list[Tile]:
    seen = scoring.accuracy(predictions)
    low, high = scoring.interval_95(seen, len(predictions.texts))
    tiles = [Tile("Accuracy", f"{seen:.1%}", f"95 % interval {low:.1%} to {high:.1%}", strong=True)]
    if baseline is not None:
        below = scoring.accuracy(baseline)
        low, high = scoring.margin_interval_95(predictions, baseline)
        interval = f"95 % interval {_points(low)} to {_points(high)}"
        tiles.append(Tile("Baseline", f"{below:.1%}", "TF-IDF and logistic regression"))
        tiles.append(Tile("Margin", f"{_points(seen - below)} points", interval))
    tiles.append(Tile("Macro-F1", f"{scoring.macro_f1(predictions):.3f}", "mean over the classes"))
    return tiles


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f}".replace("-", "\N{MINUS SIGN}")


def _classifier_summary(predictions: Predictions, baseline: Predictions | None) -> str:
    n = len(predictions.texts)
    words = f"The model is right on {int(predictions.correct.sum()):,} of {n:,} rows."
    if baseline is None:
        return words
    right = f"A linear baseline, fitted on the training rows, on {int(baseline.correct.sum()):,}."
    low, high = scoring.margin_interval_95(predictions, baseline)
    if low > 0:
        verdict = "The model is better by more than chance explains."
    elif high < 0:
        verdict = "The baseline is better by more than chance explains."
    else:
        verdict = "So few rows apart, neither is shown to be better."
    return f"{words} {right} {verdict}"


def _mistakes(predictions: Predictions) -> Examples:
    wrong = [row for row, right in enumerate(predictions.correct) if not right]
    wrong.sort(key=lambda row: -predictions.confidence[row])
    names = predictions.labels
    return Examples(
        "Most confident mistakes",
        "Where the model was surest and wrong: hard rows, or wrong labels.",
        ("true", "predicted", "confidence", "text"),
        [
            (
                names[predictions.true[row]],
                names[predictions.predicted[row]],
                f"{predictions.confidence[row]:.1%}",
                _shortened(" ⏐ ".join(predictions.texts[row])),
            )
            for row in wrong[:_EXAMPLES]
        ],
    )


def write_language_model_report(out_dir: Path, facts: Facts, losses: Sequence[TextLoss]) -> None:
    """Write the report of a language model, beside the plot that `out_dir` holds already."""
    figures = perplexity.summarise(losses)
    read = sorted((loss for loss in losses if loss.tokens), key=lambda loss: loss.mean)
    plot = Plot(
        "Loss over the texts",
        "How well each text is predicted; further left is better.",
        _embedded(out_dir / "losses.png"),
    )
    page = Page(
        facts,
        tiles=[
            Tile("Perplexity", f"{figures['perplexity']:,.2f}", "for each token", strong=True),
            Tile("Loss", f"{figures['loss']:.3f}", "nats for each token"),
            Tile("Bits per byte", f"{figures['bits_per_byte']:.3f}", "whatever the tokenizer"),
        ],
        summary=f"Over {len(losses):,} texts, {figures['tokens']:,} predicted tokens.",
        plots=[plot],
        examples=[
            _texts("Hardest texts", "Predicted worst.", list(reversed(read))[:_EXAMPLES]),
            _texts("Easiest texts", "Predicted best.", read[:_EXAMPLES]),
        ],
    )
    _write(out_dir, page)


def _texts(title: str, note: str, losses: Sequence[TextLoss]) -> Examples:
    return Examples(
        title,
        note,
        ("perplexity", "tokens", "text"),
        [(f"{loss.perplexity:,.1f}", f"{loss.tokens:,}", _shortened(loss.text)) for loss in losses],
    )


def write_generation_report(
    out_dir: Path, facts: Facts, scored: Sequence[Scored], figures: Mapping[str, float]
) -> None:
    """Write the report of generated answers, beside the plot that `out_dir` holds already."""
    ranked = sorted(scored, key=lambda row: row.scores["rougeL"])
    right = sum(row.scores[generation.EXACT_MATCH] for row in scored)
    low, high = scoring.interval_95(right / len(scored), len(scored))
    exact = f"95 % interval {low:.1%} to {high:.1%}"
    cut = sum(row.answer.finish == "length" for row in scored)
    summary = (
        f"{right:,.0f} of {len(scored):,} answers are their references, white space around them "
        f"aside. An answer has {figures['mean_new_tokens']:,.1f} tokens on average; {cut:,} were "
        f"cut at max_new_tokens. A row took {figures['seconds_per_row']:.2g} s."
    )
    if unread := generation.without_words(scored):
        summary += f" {unread:,} references hold no Latin letter or digit: their ROUGE is 0."
    page = Page(
        facts,
        tiles=[
            Tile("Exact match", f"{right / len(scored):.1%}", exact, strong=True),
            *(_rouge_tile(scored, name) for name in generation.ROUGE),
        ],
        summary=summary,
        plots=[
            Plot(
                "ROUGE-L over the answers",
                "How much of each answer and its reference is the same; further right is better.",
                _embedded(out_dir / "scores.png"),
            )
        ],
        examples=[
            _answers("Worst answers", "Least like their references.", ranked[:_EXAMPLES]),
            _answers("Best answers", "Most like them.", list(reversed(ranked))[:_EXAMPLES]),
        ],
    )
    _write(out_dir, page)


def _rouge_tile(scored: Sequence[Scored], name: str) -> Tile:
    low, high = scoring.mean_interval_95([row.scores[name] for row in scored])
    label = "ROUGE-" + name.removeprefix("rouge")
    interval = f"95 % interval {max(0.0, low):.3f} to {min(1.0, high):.3f}"
    return Tile(label, f"{generation.mean(scored, name):.3f}", interval)


def _answers(title: str, note: str, scored: Sequence[Scored]) -> Examples:
    rows = [
        (
            f"{row.scores['rougeL']:.3f}",
            _shortened(_last_said(row.example.prompt)),
            _shortened(row.example.reference),
            _shortened(row.answer.text),
        )
        for row in scored
    ]
    return Examples(title, note, ("ROUGE-L", "prompt", "reference", "answer"), rows, texts=3)


def _last_said(prompt: str | Sequence[Mapping[str, str]]) -> str:
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def _write(out_dir: Path, page: Page) -> None:
    template = resources.files(__package__).joinpath("report.html.j2").read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    html = environment.from_string(template).render(page=page)
    (out_dir / "report.html").write_text(html, encoding="utf-8")


def _embedded(picture: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode("ascii")


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 1] + "…"
