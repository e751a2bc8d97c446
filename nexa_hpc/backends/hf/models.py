"""Loading models and tokenizers: safetensors only, hashes checked, LoRA adapters with their base.

Called by training and evaluation. A LoRA checkpoint holds the adapter and `base_model.json`, which
says where its base is (a hub name and revision, `pkg://…`, or a path from the project root) and
which SHA-256 the base's weights have, so that it is never put on another base.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from nexa_hpc.backends.hf import adapters
from nexa_hpc.backends.hf.sources import Source
from nexa_hpc.core.artifacts import sha256_file
from nexa_hpc.errors import StepError

WEIGHTS = adapters.WEIGHTS

CLASSIFICATION = "text_classification"
CAUSAL_LM = "causal_lm"
_CLASSES = {
    CLASSIFICATION: transformers.AutoModelForSequenceClassification,
    CAUSAL_LM: transformers.AutoModelForCausalLM,
}


@dataclass(frozen=True)
class Trust:
    """What a user allowed by name in the params: code and pickles from the model's folder."""

    remote_code: bool = False
    pickle: bool = False

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Trust:
        """Return what `settings` allow; nothing by default."""
        return cls(bool(settings.get("trust_remote_code")), bool(settings.get("allow_pickle")))


def load_tokenizer(source: Source, trust: Trust) -> Any:
    """Return the tokenizer at `source`, with a token to pad with."""
    tokenizer = _load(transformers.AutoTokenizer, source, trust)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def load_model(source: Source, task: str, trust: Trust, **options: Any) -> Any:
    """Return the model at `source` for `task`, in 32-bit floats.

    Raises StepError where there is none, or only one in pickles that the user did not allow.
    """
    # Trained in the precision of the file (transformers' default), a bfloat16 checkpoint would be
    # updated in bfloat16, where small steps vanish; `bf16` is autocast over 32-bit weights.
    return _load(
        _CLASSES[task],
        source,
        trust,
        use_safetensors=None if trust.pickle else True,
        **{"dtype": torch.float32, **options},
    )


def _load(loader: Any, source: Source, trust: Trust, **options: Any) -> Any:
    try:
        return loader.from_pretrained(
            source.where,
            revision=source.revision or "main",
            trust_remote_code=trust.remote_code,
            **options,
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise StepError(
            f"cannot load {source.title}: {reason}", hint=_hint(source, error)
        ) from error


def _hint(source: Source, error: Exception) -> str | None:
    if "trust_remote_code" in str(error):
        return "it brings its own code; read that, then allow it with `trust_remote_code: true`"
    if source.path is not None and not any(source.path.glob("*.safetensors")):
        return "it holds no safetensors; a pickle can run code: allow one with `allow_pickle: true`"
    return None if source.path else "on a machine without a hub, give a folder or `pkg://…`"


def weights_sha256(source: Source) -> str | None:
    """Return the SHA-256 of the model.safetensors at `source`, or None if it has none."""
    if source.path is not None:
        file = source.path / WEIGHTS
        return sha256_file(file) if file.is_file() else None
    found = transformers.utils.cached_file(
        source.hub_name,
        WEIGHTS,
        revision=source.revision,
        _raise_exceptions_for_missing_entries=False,
    )
    return sha256_file(Path(found)) if found else None


def check_weights(source: Source, expected: str, said_by: str = "`model_sha256`") -> None:
    """Raise StepError unless the model.safetensors at `source` has the SHA-256 that `said_by`
    expects.
    """
    adapters.require_sha256(source, weights_sha256(source), expected, said_by)


def add_lora(model: Any, task: str, lora: Mapping[str, Any]) -> Any:
    """Return `model` with a new LoRA adapter; all else but the task's own head is frozen."""
    import peft

    options = {name: value for name, value in lora.items() if name != "merge"}
    kind = peft.TaskType.SEQ_CLS if task == CLASSIFICATION else peft.TaskType.CAUSAL_LM
    try:
        return peft.get_peft_model(model, peft.LoraConfig(**{"task_type": kind, **options}))
    except ValueError as error:
        raise StepError(f"peft refuses these `lora` params: {error}") from error


def base_reference(source: Source, project: Path, declared: Any) -> dict[str, Any]:
    """Return what `base_model.json` says about the base at `source`."""
    model = adapters.base_name(source, declared, project)
    return {"model": model, "revision": source.revision, "sha256": weights_sha256(source)}


def open_checkpoint(
    source: Source, task: str | None, trust: Trust, project: Path
) -> tuple[Any, Any, str]:
    """Return model, tokenizer and task of a trained model; an adapter is put on its base.

    Without `task` the architecture in its config tells.
    """
    config = _load(transformers.AutoConfig, source, trust)
    task = task or _task_of(config)
    tokenizer = load_tokenizer(source, trust)
    if source.path is not None and adapters.is_adapter(source.path):
        return _open_adapter(source.path, config, task, trust, project), tokenizer, task
    return load_model(source, task, trust), tokenizer, task


def _task_of(config: Any) -> str:
    architectures = config.architectures or []
    if any("SequenceClassification" in name for name in architectures):
        return CLASSIFICATION
    if any("CausalLM" in name or "LMHead" in name for name in architectures):
        return CAUSAL_LM
    raise StepError(
        f"cannot tell what a model of architecture {', '.join(architectures) or 'unknown'} does",
        hint=f"say `task: {CLASSIFICATION}` or `task: {CAUSAL_LM}`",
    )


def _open_adapter(folder: Path, config: Any, task: str, trust: Trust, project: Path) -> Any:
    import peft

    base = adapters.base_of(folder, project)
    if base.sha256 is not None:
        check_weights(base.source, base.sha256, f"the adapter's {adapters.BASE_MODEL}")
    whole = load_model(base.source, task, trust, config=config)
    return peft.PeftModel.from_pretrained(whole, str(folder))
