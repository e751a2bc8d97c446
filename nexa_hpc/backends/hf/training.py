"""Training with transformers' Trainer: from a `Task` to a filled checkpoint folder.

The one entry is `train`, called by `runners/train.py`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers

from nexa_hpc.backends.hf import (
    adapters,
    arguments,
    callbacks,
    card,
    curves,
    models,
    recipes,
    rows,
    sampling,
)
from nexa_hpc.backends.hf.recipes import Recipe
from nexa_hpc.backends.hf.sources import Source, find_source, task_settings
from nexa_hpc.core.handlers import Task
from nexa_hpc.errors import Interrupted, StepError, UserError

TRAINING = "training.json"
"""What was trained on what, by which columns and lengths: evaluation takes its defaults from it."""

_PICKLED_ARGUMENTS = "training_args.bin"


def train(task: Task) -> None:
    """Fill `task.out_dir` with a trained model.

    Raises StepError when training cannot be done or diverges; Interrupted on SIGTERM, after the
    checkpoint is sealed.
    """
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    settings = task_settings(task)
    model, dataset = _needed(task, settings, "model"), _needed(task, settings, "dataset")
    if settings.get("model_sha256"):
        models.check_weights(model, settings["model_sha256"])
    splits = rows.load_splits(dataset, settings.get("dataset_config"), _scratch(task))
    # Before the model is made: the seed decides its new head.
    transformers.set_seed(settings.get("seed", arguments.DEFAULT_SEED))
    recipe = recipes.prepare(settings, model, dataset, splits)
    if settings.get("lora") is not None:
        recipe = _with_lora(recipe, settings["lora"])
    trainer = _run(task, settings, recipe)
    if trainer.is_world_process_zero():
        _describe(task, settings, recipe, trainer, model, dataset)
    # The process group is left to the process's end: destroyed before the model that holds it, it
    # is joined under Python's lock, which gloo's own threads may be waiting for.


def _scratch(task: Task) -> Path:
    """Return a folder of this rank alone: the library's caches are not written by several."""
    rank = task.ranks.rank
    return task.work_dir / f"rank-{rank}" if rank else task.work_dir


def _needed(task: Task, settings: Mapping[str, Any], name: str) -> Source:
    source = find_source(task, settings, name)
    if source is None:
        raise UserError(f"step '{task.step_id}' names no {name}")
    return source


def _with_lora(recipe: Recipe, lora: Mapping[str, Any]) -> Recipe:
    model = models.add_lora(recipe.model, recipe.task, lora)
    return Recipe(**{**vars(recipe), "model": model})


def _run(task: Task, settings: Mapping[str, Any], recipe: Recipe) -> Any:
    """Train, from the sealed checkpoint of an earlier attempt if there is one; save the model."""
    validates = recipe.eval_rows is not None
    stop = callbacks.StopOnRequest()
    seal = callbacks.SealCheckpoints(
        task.work_dir,
        settings.get("save_total_limit") or callbacks.KEPT,
        bounded="save_steps" not in settings and not settings.get("load_best_model_at_end"),
    )
    trainer = sampling.Trainer(
        model=recipe.model,
        args=arguments.training_arguments(task, settings, validates=validates),
        train_dataset=recipe.train_rows,
        eval_dataset=recipe.eval_rows,
        processing_class=recipe.tokenizer,
        data_collator=recipe.collator,
        compute_metrics=recipe.compute_metrics,
        callbacks=[stop, seal, callbacks.Report(task)],
    )
    if recipe.task == models.CLASSIFICATION:
        # Their losses are means of the rows at hand. The Trainer takes them for shares of a sum
        # over all that a step accumulates, as their `forward` takes any argument, and would let
        # loss and gradients grow with the number of shares.
        trainer.model_accepts_loss_kwargs = False
    trainer.remove_callback(transformers.PrinterCallback)
    resumed = None if task.resume is None else str(task.resume.path)
    if trainer.is_world_process_zero():
        print(_opening(recipe, trainer, resumed), flush=True)
    with callbacks.sigterm_calls(stop):
        trainer.train(resume_from_checkpoint=resumed)
    if stop.stopping:
        raise Interrupted(
            f"stopped by SIGTERM at step {trainer.state.global_step} of {trainer.state.max_steps}; "
            "the checkpoint is sealed",
            hint="run the pipeline again: it goes on from there",
        )
    if validates and _latest_evaluation(trainer.state) is None:
        trainer.evaluate()
    _save_model(trainer, settings, task.out_dir)
    return trainer


def _opening(recipe: Recipe, trainer: Any, resumed: str | None) -> str:
    trained = sum(p.numel() for p in recipe.model.parameters() if p.requires_grad)
    where = f", from {Path(resumed).name}" if resumed else ""
    processes = trainer.args.world_size
    return (
        f"training {trained:,} parameters on {len(recipe.train_rows):,} rows, "
        f"on {trainer.args.device}{f' x {processes}' if processes > 1 else ''}{where}"
    )


def _save_model(trainer: Any, settings: Mapping[str, Any], out_dir: Path) -> None:
    if (settings.get("lora") or {}).get("merge"):
        trainer.model = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload()
    trainer.save_model(str(out_dir))
    # A pickle, which nobody should load, and which holds this machine's paths.
    (out_dir / _PICKLED_ARGUMENTS).unlink(missing_ok=True)


def _describe(
    task: Task,
    settings: Mapping[str, Any],
    recipe: Recipe,
    trainer: Any,
    model: Source,
    dataset: Source,
) -> None:
    """Write everything but the model itself."""
    out_dir = task.out_dir
    trainer.state.best_model_checkpoint = None  # A path of this machine, soon removed.
    trainer.state.save_to_json(str(out_dir / "trainer_state.json"))
    if adapters.is_adapter(out_dir):
        recipe.model.config.save_pretrained(str(out_dir))
        declared = settings.get("model")
        _write(out_dir / adapters.BASE_MODEL, models.base_reference(model, task.project, declared))
    summary = {
        "task": recipe.task,
        "model": model.title,
        "model_revision": model.revision,
        "dataset": dataset.title,
        "dataset_config": settings.get("dataset_config"),
        "dataset_revision": dataset.revision,
        **recipe.decided,
        "max_train_rows": settings.get("max_train_rows"),
        "lora": settings.get("lora"),
        "seed": trainer.args.seed,
    }
    metrics = _metrics(recipe, trainer)
    _write(out_dir / TRAINING, summary)
    _write(out_dir / "metrics.json", metrics)
    curves.draw(trainer.state.log_history, out_dir / "curve.png")
    chosen = {name: value for name, value in settings.items() if name not in summary}
    (out_dir / "README.md").write_text(card.model_card(summary, chosen, metrics), encoding="utf-8")


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _metrics(recipe: Recipe, trainer: Any) -> dict[str, float]:
    """Return the figures of a finished training; raises StepError when its loss is no number."""
    state = trainer.state
    loss = mean_loss(state.log_history)
    if not math.isfinite(loss):
        raise StepError(
            f"the training loss is {loss}: the training diverged",
            hint="a smaller learning_rate, or warmup_steps, may help",
        )
    runtime = next(log for log in reversed(state.log_history) if "train_runtime" in log)
    metrics = {
        "train_loss": loss,
        "train_runtime_s": runtime["train_runtime"],
        "train_rows": len(recipe.train_rows),
        "train_steps": state.global_step,
        "epochs": state.epoch,
    }
    evaluated = _latest_evaluation(state) or {}
    for name in ("eval_loss", "eval_accuracy", "eval_macro_f1"):
        if name in evaluated:
            metrics[name] = evaluated[name]
    if recipe.task == models.CAUSAL_LM and "eval_loss" in metrics:
        metrics["eval_perplexity"] = recipes.perplexity(metrics["eval_loss"])
    if recipe.eval_rows is not None:
        metrics["eval_rows"] = len(recipe.eval_rows)
    return metrics


def mean_loss(history: list[dict[str, Any]]) -> float:
    """Return the mean training loss over all steps.

    transformers' own `train_loss` counts, after a resume, only the steps since.
    """
    total, last_step = 0.0, 0
    for log in history:
        if "loss" in log:
            total += log["loss"] * (log["step"] - last_step)
            last_step = log["step"]
    return total / max(1, last_step)


def _latest_evaluation(state: Any) -> dict[str, Any] | None:
    """Return the figures of the evaluation after the last step, if that was done."""
    for log in reversed(state.log_history):
        if "eval_loss" in log and log["step"] == state.global_step:
            return dict(log)
    return None
