"""A project to compose in: option files, layers of their own, and Hydra itself to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from nexa_hpc.compose.document import Composed, compose_pipeline
from nexa_hpc.errors import UserError

PLAIN = """\
pipeline:
  name: p
  steps:
    - id: prep
      uses: runners.command
      params: {command: 'echo ${HOME}'}
    - id: train-x.1
      uses: runners.command
      params:
        command: 'true'
        lr: 1
"""
COMPOSED = """\
defaults:
  - train: small
x-seed: 3
pipeline:
  name: p
  steps:
    - id: prep
      uses: runners.command
      params: {command: "echo '${' ${HOME:-x}", seed: '${x-seed}'}
    - id: train
      uses: runners.command
      params: ${train}
    - id: eval
      uses: runners.command
      params: {command: 'true', name: 'lr ${train.lr} ${train.opt.name}'}
"""
OPTIONS = {
    "train/small": "command: 'true'\nlr: 1e-3\nbs: 8\nopt: {name: adam, betas: [1, 2]}\n",
    "train/big": "command: 'true'\nlr: 1e-4\nbs: 16\nopt: {name: sgd, betas: [3, 4]}\n",
}


class Composing:
    """A project whose layers are folders of the test."""

    def __init__(self, root: Path, base: Path) -> None:
        self.root = root
        self.site = base / "site"
        self.user = base / "user" / "nexa_hpc"
        self.write("plain.yaml", PLAIN)
        self.write("composed.yaml", COMPOSED)
        for name, text in OPTIONS.items():
            self.write(f"configs/{name}.yaml", text)

    def write(self, name: str, text: str, folder: Path | None = None) -> Path:
        """Write a file in the project, or in the folder of another layer."""
        file = (folder or self.root) / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def compose(self, name: str, *overrides: str, **how: Any) -> Composed:
        """Compose a file of the project."""
        return compose_pipeline(self.root / name, self.root, overrides, **how)

    def params(self, name: str, *overrides: str, **how: Any) -> dict[str, Any]:
        """Return step id -> params."""
        return params_of(self.compose(name, *overrides, **how).document.value)

    def refused(self, name: str, *overrides: str, **how: Any) -> str:
        """Return the message, and the hint, with which composing is refused."""
        with pytest.raises(UserError) as caught:
            self.compose(name, *overrides, **how)
        assert caught.value.exit_code == 2
        return f"{caught.value}\n{caught.value.hint}"


def params_of(value: Any) -> dict[str, Any]:
    """Return step id -> params of a document."""
    return {step["id"]: step.get("params") for step in value["pipeline"]["steps"]}


def by_hydra(folder: Path, name: str, overrides: Sequence[str], layers: Sequence[Path]) -> Any:
    """Return the pipeline that Hydra itself makes of a file, resolved."""
    from hydra import compose, initialize_config_dir
    from hydra.version import VersionBase
    from omegaconf import OmegaConf

    path = ",".join(f"file://{layer}" for layer in layers)
    kept = VersionBase.instance()
    before = kept.version_base
    try:
        with initialize_config_dir(str(folder), version_base="1.3"):
            config = compose(name, [f"hydra.searchpath=[{path}]", *overrides])
    finally:
        kept.version_base = before
    return OmegaConf.to_container(config.pipeline, resolve=True)


@pytest.fixture
def composing(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Composing:
    """A project with layers of its own: nothing of the machine's user or site."""
    found = Composing(project, tmp_path)
    monkeypatch.delenv("NEXA_HPC_SITE", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "user"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return found
