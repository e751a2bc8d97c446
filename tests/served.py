"""What the tests of serving share: models, stand-ins for servers, and the processes of servers."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import child_environment

from nexa_hpc.core.servers import Servers

TOKEN_FLAGS = ("-O", "token=true", "-O", "threads=1")
_ANSWERING = """
import http.server, os, pathlib, sys, time
host, port = (sys.argv[sys.argv.index(flag) + 1] for flag in ("--host", "--port"))
here = pathlib.Path(__file__).parent
with (here / "starts").open("a") as starts:
    starts.write(f"{os.getpid()}\\n")
print("started with", dict(os.environ), flush=True)
while (here / "hold").exists():
    time.sleep(0.05)
class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"served")
    def log_message(self, *args):
        pass
http.server.ThreadingHTTPServer((host, int(port)), Answers).serve_forever()
"""


class StandIn:
    """An interpreter that, whatever it is given, starts a server which answers within a moment."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._starts = folder / "starts"
        self.gate = folder / "hold"
        """While this is there, it does not answer."""
        (folder / "answering.py").write_text(_ANSWERING)
        self.python = folder / "python"
        self.python.write_text(f'#!/bin/sh\nexec {sys.executable} {folder}/answering.py "$@"\n')
        self.python.chmod(0o755)

    def starts(self) -> list[int]:
        """Return the process ids of all that were started, in their order."""
        return [*map(int, self._starts.read_text().split())] if self._starts.exists() else []


def write_model(folder: Path, **config: Any) -> Path:
    """Write a folder that looks like a model from the outside."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    content = struct.pack("<Q", len(header)) + header + bytes(8)
    (folder / "model.safetensors").write_bytes(content)
    return folder


def save_tiny_model(folder: Path) -> Path:
    """Save a causal model that really answers, however little it has to say."""
    import hf_tiny

    hf_tiny.save_llama(folder)
    tokenizer = hf_tiny.make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    tokenizer.save_pretrained(folder)
    return folder


def processes_of(name: str, folder: Path | None = None) -> list[int]:
    """Return the processes of servers whose tags begin with `name`, of the project that keeps its
    servers in `folder`, or of any.
    """
    wanted = f"NEXA_HPC_SERVER={name}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            variables = (process / "environ").read_bytes().split(b"\0")
            is_of = folder is None or (process / "cwd").readlink() == folder
            if is_of and any(variable.startswith(wanted) for variable in variables):
                found.append(int(process.name))
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


def check_openai_client(client: Any) -> None:
    """Complete, chat and stream by the `openai` client, as anybody uses it."""
    asked = {"model": "tiny", "max_tokens": 6, "temperature": 0}
    assert [model.id for model in client.models.list().data] == ["tiny"]
    whole = client.completions.create(prompt="the film is", **asked)
    assert whole.choices[0].finish_reason in ("stop", "length")
    assert whole.usage.completion_tokens <= 6
    streamed = client.completions.create(prompt="the film is", stream=True, **asked)
    assert "".join(part.choices[0].text for part in streamed) == whole.choices[0].text
    messages = [{"role": "user", "content": "the film"}]
    chat = client.chat.completions.create(messages=messages, **asked)
    parts = client.chat.completions.create(messages=messages, stream=True, **asked)
    said = "".join(part.choices[0].delta.content or "" for part in parts)
    assert said == chat.choices[0].message.content


def check_refusals(client: Any) -> None:
    """Be refused without the token, and for a model that is not served."""
    import openai

    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="other", prompt="a")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A project with a tiny causal model; what runs at the end is stopped."""
    pytest.importorskip("torch")
    pytest.importorskip("fastapi")
    root = tmp_path_factory.mktemp("serving")
    save_tiny_model(root / "tiny")
    found = Site(root)
    yield found
    for name in Servers(root / ".nexa_state/serve").names():
        found.serve("stop", name)
