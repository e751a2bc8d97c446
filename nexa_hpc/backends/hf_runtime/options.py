"""What `hf_runtime` takes, and the command that starts it. Light: planning and `serve` call it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nexa_hpc.backends.hf import checks

TOKEN_VARIABLE = "NEXA_HPC_SERVE_TOKEN"
VARIABLES: Mapping[str, str] = {}
OPTIONS: Mapping[str, checks.Kind] = {
    "task": checks.one_of("text_classification", "causal_lm"),
    "dtype": checks.one_of("float32", "bfloat16", "float16"),
    "device": checks.TEXT,
    "max_batch": checks.COUNT,
    "max_queue": checks.COUNT,
    "max_model_len": checks.COUNT,
    "threads": checks.COUNT,
}
START = (
    "import sys; sys.path[:] = [*filter(None, sys.path), sys.argv.pop(1)]; "
    "from nexa_hpc.backends.hf_runtime.main import main; main()"
)
"""Nothing is imported from the current folder, which `python -m` would begin with."""
_NEEDS = ("torch", "transformers", "fastapi", "uvicorn")
_ROOT = Path(__file__).resolve().parents[3]


def problems(
    options: Mapping[str, Any], tensor_parallel: int, *, is_ours: bool = True
) -> Iterator[tuple[str, str]]:
    """Yield (place, message) for what cannot be asked of it; what it needs is looked for where it
    is to run in our own interpreter (`is_ours`).
    """
    lacking = [name for name in _NEEDS if is_ours and importlib.util.find_spec(name) is None]
    if lacking:
        told = f"needs {', '.join(lacking)}, not installed here: pip install 'nexa-hpc[serve]'"
        yield "backend", told
    yield from checks.check(options, OPTIONS, "params")
    if tensor_parallel != 1:
        yield "params.tensor_parallel", "hf_runtime runs on one device; take backend vllm"


def command(
    model: str,
    served_as: str,
    project: Path,
    options: Mapping[str, Any],
    allowed: Sequence[str],
    python: str = "",
) -> list[str]:
    """Return the argv; `{host}` and `{port}` are for the supervisor to fill in.

    `project`: where the base of an adapter is looked for. `allowed`: `trust_remote_code` and
    `allow_pickle`, where the user named them.
    """
    argv = [python or sys.executable, "-c", START, str(_ROOT), "--model", model]
    argv += ["--served-model-name", served_as, "--project", str(project)]
    argv += ["--host", "{host}", "--port", "{port}"]
    for name, value in sorted(options.items()):
        argv += [f"--{name.replace('_', '-')}", str(value)]
    return argv + [f"--{name.replace('_', '-')}" for name in allowed]
