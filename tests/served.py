"""A project whose servers are started, asked about and stopped by the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import child_environment

from nexa_hpc.core.servers import Servers

TOKEN_FLAGS = ("-O", "token=true", "-O", "threads=1")


def processes_of(name: str) -> list[int]:
    """Return the processes of servers whose tags begin with `name`."""
    wanted = f"NEXA_HPC_SERVER={name}-".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if any(v.startswith(wanted) for v in (folder / "environ").read_bytes().split(b"\0")):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


class Site:
    """A project whose servers are started and stopped by the command line."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "nexa.yaml").write_text("{}\n")

    def serve(self, *args: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
        """Run `nexa-hpc serve ARGS`."""
        done = subprocess.run(
            [sys.executable, "-m", "nexa_hpc", "serve", *args],
            cwd=self.root, env=child_environment(), capture_output=True, text=True, timeout=180,
        )  # fmt: skip
        assert done.returncode == expect, done.stdout + done.stderr
        return done

    def start(self, model: str, name: str, *more: str) -> str:
        """Start a server and return its URL."""
        return self.serve("start", model, "--name", name, *TOKEN_FLAGS, *more).stdout.strip()

    def state(self, name: str) -> dict[str, Any]:
        """Return what `serve list` says of `name`."""
        listed = json.loads(self.serve("list", "--json").stdout)
        return next((row for row in listed if row["name"] == name), {"state": "ABSENT"})


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A project with a tiny causal model; what runs at the end is stopped."""
    pytest.importorskip("torch")
    pytest.importorskip("fastapi")
    import hf_tiny

    root = tmp_path_factory.mktemp("serving")
    folder = hf_tiny.save_llama(root / "tiny")
    tokenizer = hf_tiny.make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    tokenizer.save_pretrained(folder)
    found = Site(root)
    yield found
    for name in Servers(root / ".nexa_state/serve").names():
        found.serve("stop", name)
