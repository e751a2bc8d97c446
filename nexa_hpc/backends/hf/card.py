"""The model card, README.md of a checkpoint: what was trained on what, how, and how well it does.

Called by training. Holds no path of the machine. Standard library alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TASKS = {
    "text_classification": ("text classification", "AutoModelForSequenceClassification"),
    "causal_lm": ("causal language modelling", "AutoModelForCausalLM"),
}
_PIPELINE_TAGS = {"text_classification": "text-classification", "causal_lm": "text-generation"}
_LONGEST_VALUE = 120


def model_card(
    summary: Mapping[str, Any], params: Mapping[str, Any], metrics: Mapping[str, float]
) -> str:
    """Return the card as Markdown: `summary` is training.json, `params` what else was set."""
    task, loader = _TASKS[summary["task"]]
    kind = "A LoRA fine-tuning" if summary["lora"] else "A fine-tuning"
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            f"pipeline_tag: {_PIPELINE_TAGS[summary['task']]}",
            "---",
            "",
            f"# {_last_part(summary['model'])}, trained on {_last_part(summary['dataset'])}",
            "",
            f"{kind} of `{summary['model']}` for {task} on `{summary['dataset']}`, by nexa_hpc.",
            "",
            *_table("Results", metrics),
            *_table("Data and model", {k: v for k, v in summary.items() if v is not None}),
            *_table("Settings", params),
            "## Use",
            "",
            "```python",
            f"from transformers import AutoTokenizer, {loader}",
            "",
            'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")',
            f'model = {loader}.from_pretrained("path/to/this/folder")',
            "```",
            "",
            "The results are on validation rows that training looked at. How good the model is on",
            "new text, the report of an evaluation on a test split tells.",
            "",
        ]
    )


def _table(title: str, values: Mapping[str, Any]) -> list[str]:
    if not values:
        return []
    lines = [f"| {name} | {_cell(value)} |" for name, value in values.items()]
    return [f"## {title}", "", "| | |", "| --- | --- |", *lines, ""]


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        value = ", ".join(map(str, value))
    text = str(value).replace("|", "\\|").replace("\n", " ")
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 1] + "…"


def _last_part(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2] or name
