"""A stand-in for axolotl, at the process boundary: a package with its schema and command line.

It prints as axolotl and transformers print, saves when it finds the trigger file, and leaves what
they leave. `NEXA_TEST_AXOLOTL` names the virtual environment of a real one, for the slow tests.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

_NAMED = os.environ.get("NEXA_TEST_AXOLOTL")
REAL = None if _NAMED is None else os.path.abspath(_NAMED)
needs_axolotl = pytest.mark.skipif(
    REAL is None, reason="needs axolotl: NEXA_TEST_AXOLOTL names its virtual environment"
)

SCHEMA = """
from pydantic import BaseModel, Field, field_validator

from axolotl.utils.schemas.datasets import SFTDataset


class Tokens(BaseModel):
    pad_token: str | None = None


class AxolotlInputConfig(BaseModel):
    base_model: str
    datasets: list[SFTDataset]
    test_datasets: list[SFTDataset] | None = None
    learning_rate: float = Field(default=1e-4, validation_alias="lr")
    max_steps: int = 10
    save_steps: int = 1000
    save_total_limit: int = 2
    adapter: str | None = None
    special_tokens: Tokens | None = None
    output_dir: str = "out"
    dataset_prepared_path: str = "prepared"
    dynamic_checkpoint: dict | None = None
    resume_from_checkpoint: str | None = None
    step_s: float = 0.0
    fail_at: int | None = None
    model_config = {"populate_by_name": True}

    @field_validator("max_steps")
    @classmethod
    def some(cls, value):
        if value < 1:
            raise ValueError("max_steps takes 1 or more")
        return value
"""

DATASETS = """
from pydantic import BaseModel


class SFTDataset(BaseModel):
    path: str | None = None
    ds_type: str | None = None
    split: str | None = None
    type: str | None = None
"""

MAIN = r"""
import json, os, sys, time
from pathlib import Path

import yaml

command, file = sys.argv[1:3]
config = yaml.safe_load(Path(file).read_text())
out = Path(config["output_dir"])
Path(os.environ["NEXA_STAND_IN"], "pid").write_text(str(os.getpid()))
seen = {"argv": sys.argv[1:], "track": os.environ.get("AXOLOTL_DO_NOT_TRACK"), "config": config}
Path(os.environ["NEXA_STAND_IN"], f"{command}.json").write_text(json.dumps(seen))
if command == "merge-lora":
    (out / "merged").mkdir()
    (out / "merged/model.safetensors").write_text("merged")
    for name in ("meta.json", "COMPLETE", "base_model.json", "config.json"):
        (out / "merged" / name).write_text("{}")
    sys.exit()


def save(step, history):
    folder = out / f"checkpoint-{step}"
    folder.mkdir(exist_ok=True)
    (folder / "optimizer.pt").write_text("state")
    state = {"global_step": step, "log_history": history}
    (folder / "trainer_state.json").write_text(json.dumps(state))


step, history, total = 0, [], config["max_steps"]
if config.get("resume_from_checkpoint"):
    resumed = json.loads(Path(config["resume_from_checkpoint"], "trainer_state.json").read_text())
    step, history = resumed["global_step"], resumed["log_history"]
print("Tokenizing: 100%|####| 7/7 [00:00<00:00]\r", end="")
print("[INFO] Starting trainer...", flush=True)
while step < total:
    time.sleep(config.get("step_s", 0))
    step += 1
    if step == config.get("fail_at"):
        sys.exit(3)
    log = {"loss": 10.0 - step, "learning_rate": 0.1, "epoch": step / total}
    history.append({**log, "step": step})
    print(f" 10%|#    | {step}/{total} [00:01<00:09]\r", end="")
    print({name: str(value) for name, value in log.items()}, flush=True)
    trigger = out / "axolotl_checkpoint.save"
    if trigger.exists():
        trigger.unlink()
        save(step, history)
    elif step % config.get("save_steps", 1000) == 0:
        save(step, history)
weights = "adapter_model" if config.get("adapter") else "model"
(out / f"{weights}.safetensors").write_text("weights")
if config.get("adapter"):
    (out / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/machine/x"}))
for name in ("config.json", "tokenizer.json", "README.md", "debug.log", "training_args.bin"):
    (out / name).write_text("{}")
"""


def install(folder: Path) -> dict[str, str]:
    """Write the stand-in below `folder`; return the variables by which a Python finds it."""
    files = {
        "utils/schemas/config.py": SCHEMA,
        "utils/schemas/datasets.py": DATASETS,
        "cli/main.py": MAIN,
    }
    for name, text in files.items():
        file = folder / "axolotl" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        for package in file.relative_to(folder).parents:
            if str(package) != ".":
                (folder / package / "__init__.py").touch()
    return {"PYTHONPATH": str(folder), "NEXA_STAND_IN": str(folder)}


def seen(folder: Path, command: str = "train") -> dict[str, object]:
    """Return what the stand-in installed in `folder` was last started with."""
    found: dict[str, object] = json.loads((folder / f"{command}.json").read_text())
    return found
