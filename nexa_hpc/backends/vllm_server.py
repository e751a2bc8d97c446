"""`vllm`: its own OpenAI-compatible server, in the interpreter that has it. Light.

Planning and `serve` ask what is installed there, from its source text; vLLM itself is imported by
the server alone.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nexa_hpc.backends.hf import checks, installed
from nexa_hpc.errors import UserError

TOKEN_VARIABLE = "VLLM_API_KEY"
VARIABLES = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
_OURS = {
    "api_key": "a token is made where one is needed: `token: true`",
    "tensor_parallel_size": "say `tensor_parallel`",
}
_CLASSES = (
    ("engine/arg_utils.py", "EngineArgs"),
    ("engine/arg_utils.py", "AsyncEngineArgs"),
    ("entrypoints/launchers/cli_args.py", "BaseFrontendArgs"),
    ("entrypoints/launchers/cli_args.py", "FrontendArgs"),
    ("entrypoints/openai/cli_args.py", "BaseFrontendArgs"),
    ("entrypoints/openai/cli_args.py", "FrontendArgs"),
)
"""Where releases keep the names of their options."""
_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What `max_lora_rank` may be (vllm/config/lora.py)."""
_ASK = """
import importlib.metadata as m, importlib.util, json
spec = importlib.util.find_spec("vllm")
try: named = bool(m.version("vllm"))
except m.PackageNotFoundError: named = False
print(json.dumps([spec.origin if spec else "", named]))
"""


def problems(options: Mapping[str, Any], python: str = "") -> Iterator[tuple[str, str]]:
    """Yield (place, message) for what cannot be asked of the vLLM that `python` has."""
    for name in options:
        if name in _OURS:
            yield f"params.{name}", f"is not the server's to take: {_OURS[name]}"
    try:
        known = _options(_installed(python or sys.executable)[0])
    except UserError as error:
        yield "backend", str(error)
        return
    asked = {name: value for name, value in options.items() if name not in _OURS}
    yield from checks.check(asked, known, "params")


def command(
    model: str, served_as: str, options: Mapping[str, Any], parallel: int, python: str = ""
) -> list[str]:
    """Return the argv; `{host}` and `{port}` are for the supervisor to fill in.

    `vllm serve` asks for the distribution `vllm`, and dies where it is called otherwise, as the CPU
    build is: there it is started as a module.
    """
    python = python or sys.executable
    program = Path(python).with_name("vllm")
    if _installed(python)[1] and program.is_file():
        argv = [str(program), "serve", model]
    else:
        argv = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    argv += ["--served-model-name", served_as, "--host", "{host}", "--port", "{port}"]
    if parallel > 1:
        argv += ["--tensor-parallel-size", str(parallel)]
    for name, value in sorted(options.items()):
        argv += _option(name.replace("_", "-"), value)
    return argv


def adapter_options(name: str, folder: Path, rank: int) -> dict[str, Any]:
    """Return the options under which a base answers as `name` with the LoRA adapter in `folder`."""
    own_tokenizer = {"tokenizer": str(folder)} if (folder / "tokenizer.json").is_file() else {}
    return {
        "enable_lora": True,
        "lora_modules": [json.dumps({"name": name, "path": str(folder)})],
        "max_lora_rank": next((most for most in _LORA_RANKS if most >= rank), rank),
        **own_tokenizer,
    }


def _option(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}", json.dumps(value) if isinstance(value, Mapping) else str(value)]


@functools.cache
def _installed(python: str) -> tuple[Path, bool]:
    """Return the folder of the vLLM that `python` has, and whether its distribution is `vllm`."""
    try:
        done = subprocess.run([python, "-c", _ASK], capture_output=True, text=True, cwd="/")
    except OSError as error:
        raise UserError(f"no interpreter {python}: {error.strerror}") from error
    origin, named = json.loads(done.stdout) if done.returncode == 0 else ("", False)
    if not origin:
        raise UserError(
            f"{python} has no vllm: install it in an environment of its own, and name that "
            "environment's Python in `python`"
        )
    return Path(origin).parent, bool(named)


def _options(package: Path) -> dict[str, checks.Kind]:
    found: dict[str, checks.Kind] = {}
    for file, name in _CLASSES:
        if (package / file).is_file():
            fields = installed.fields_of_class(package / file, name)
            found |= {field: checks.annotated(kind) for field, kind in fields.items()}
    return found
