"""From axolotl's output folder to a checkpoint artifact: weights, tokenizer, figures, the config.

Called by the step when axolotl has ended. Holds no path of the machine, and no pickle.
"""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nexa_hpc.backends.axolotl import checkpoints
from nexa_hpc.backends.axolotl.configuring import Prepared, as_yaml
from nexa_hpc.backends.hf import adapters
from nexa_hpc.backends.hf.sources import find_source
from nexa_hpc.core.artifacts import META, sha256_file
from nexa_hpc.core.handlers import Task
from nexa_hpc.core.reading import read_json
from nexa_hpc.errors import StepError

_SUFFIXES = (".safetensors", ".json", ".jinja", ".txt", ".model")
_LEFT_OUT = (
    checkpoints.STATE,
    "all_results.json",
    "train_results.json",
    # Merging copies whatever lies beside the base's weights, which may be a step's result.
    META,
    "base_model.json",
    "training.json",
    "metrics.json",
)

History = Sequence[Mapping[str, Any]]


def publish(task: Task, prepared: Prepared, weights: Path, printed: History) -> None:
    """Fill `task.out_dir` with what lies in `weights`; raises StepError when that is no model."""
    out = task.out_dir
    history = _history(prepared, printed)
    metrics = _metrics(history)
    _copy(weights, out)
    if not list(out.glob("*.safetensors")):
        raise StepError("axolotl left no weights in safetensors")
    if adapters.is_adapter(out):
        _name_base(task, prepared, out)
    _write(out / "training.json", _summary(task, prepared))
    _write(out / "metrics.json", metrics)
    (out / "axolotl.yaml").write_text(as_yaml(_shown(task, prepared)), encoding="utf-8")
    _write_curve(history, out / "curve.csv")
    _draw_curve(history, out / "curve.png")
    figures = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
    print(f"trained: {figures}", flush=True)


def _copy(source: Path, out: Path) -> None:
    """Copy what a model consists of: no optimizer, no log, no model card with paths in it."""
    for file in sorted(source.iterdir()):
        if file.is_file() and file.suffix in _SUFFIXES and file.name not in _LEFT_OUT:
            shutil.copyfile(file, out / file.name)


def _history(prepared: Prepared, printed: History) -> list[dict[str, Any]]:
    """Return the figures of all steps: those of the last checkpoint, and what came after it.

    One that was resumed from its last step saves no other.
    """
    state = checkpoints.state_of(prepared.out)
    resumed = prepared.config.get("resume_from_checkpoint")
    if not state and resumed is not None:
        state = checkpoints.state_of(Path(resumed).parent)
    saved = state.get("log_history") or []
    last = state.get("global_step", 0)
    later = [dict(entry) for entry in printed if entry["step"] > last]
    return [*saved, *later]


def _metrics(history: History) -> dict[str, float]:
    losses = [entry for entry in history if "loss" in entry]
    total, steps = 0.0, 0
    for entry in losses:
        total += entry["loss"] * (entry["step"] - steps)
        steps = entry["step"]
    metrics: dict[str, float] = {"train_steps": max((e["step"] for e in history), default=0)}
    if steps:
        metrics |= {"train_loss": total / steps, "train_loss_last": losses[-1]["loss"]}
    evaluated = next((e for e in reversed(history) if "eval_loss" in e), None)
    if evaluated is not None:
        metrics["eval_loss"] = evaluated["eval_loss"]
        metrics["eval_perplexity"] = math.exp(min(evaluated["eval_loss"], 700.0))
    epochs = [entry["epoch"] for entry in history if entry.get("epoch") is not None]
    if epochs:
        metrics["epochs"] = max(epochs)
    if not all(map(math.isfinite, metrics.values())):
        raise StepError(
            "the loss is no finite number: the training diverged",
            hint="a smaller learning_rate, or warmup_steps, may help",
        )
    return metrics


def _summary(task: Task, prepared: Prepared) -> dict[str, Any]:
    config = prepared.config
    dataset = find_source(task, prepared.settings, "dataset")
    judges = config.get("reward_model") or config.get("process_reward_model")
    return {
        "task": None if judges else "causal_lm",
        "backend": "axolotl",
        "model": prepared.model.title,
        "model_revision": prepared.model.revision,
        "dataset": None if dataset is None else dataset.title,
        "max_length": config.get("sequence_len"),
        "adapter": config.get("adapter"),
        "merged": bool(prepared.settings.get("merge")),
        "seed": config.get("seed"),
    }


def _name_base(task: Task, prepared: Prepared, out: Path) -> None:
    """Say which base an adapter belongs on, as evaluation reads it, and no path of this machine."""
    model = prepared.model
    declared = next((task.params[n] for n in ("model", "base_model") if n in task.params), None)
    named = adapters.base_name(model, declared, task.project)
    weights = model.path / adapters.WEIGHTS if model.path is not None else None
    sha256 = sha256_file(weights) if weights is not None and weights.is_file() else None
    base = {"model": named, "revision": model.revision, "sha256": sha256}
    _write(out / adapters.BASE_MODEL, base)
    adapter = {**read_json(out / adapters.ADAPTER_CONFIG), "base_model_name_or_path": named}
    _write(out / adapters.ADAPTER_CONFIG, adapter)


def _shown(task: Task, prepared: Prepared) -> dict[str, Any]:
    """Return the config without this machine's paths and without what was this attempt's alone."""
    dropped = ("output_dir", "dataset_prepared_path", "resume_from_checkpoint")
    shown = {name: value for name, value in prepared.config.items() if name not in dropped}
    shown["base_model"] = prepared.model.title
    for name in ("datasets", "test_datasets"):
        if isinstance(shown.get(name), list):
            shown[name] = [_without_place(task, entry) for entry in shown[name]]
    return shown


def _without_place(task: Task, entry: Any) -> Any:
    path = entry.get("path") if isinstance(entry, Mapping) else None
    if not isinstance(path, str) or not path.startswith("/"):
        return entry
    for name, folder in task.inputs.items():
        if Path(path).is_relative_to(folder):
            below = Path(path).relative_to(folder)
            return {**entry, "path": str(Path(name, below))}
    return {**entry, "path": Path(path).name}


def _write_curve(history: History, target: Path) -> None:
    names = ("step", "epoch", "loss", "eval_loss", "learning_rate")
    with target.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore", restval="")
        writer.writeheader()
        writer.writerows(e for e in history if "loss" in e or "eval_loss" in e)


def _draw_curve(history: History, target: Path) -> None:
    """Draw the picture where matplotlib is, which axolotl does not bring."""
    try:
        from nexa_hpc.backends.hf import curves
    except ImportError:
        return
    curves.draw([dict(entry) for entry in history], target)


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
