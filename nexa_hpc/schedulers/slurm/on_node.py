"""What a compute node sees: copied beside what it has to look at, and run there by `node_trial`.

    python on_node.py RESULT FOLDER ...      writes RESULT, as JSON

A script, and no part of the package where it runs: whether that can be imported there is one of the
questions. Standard library alone, and no more of Python than 3.7 has.
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

FROM_LOGIN, FROM_NODE = "from-login", "from-node"


def look(folders: list[str]) -> dict[str, Any]:
    """Return what this node finds out."""
    return {
        "node": socket.gethostname(),
        "executable": sys.executable,
        "python": list(sys.version_info[:3]),
        "modules": {name: _imported(name) for name in ("nexa_hpc", "submitit")},
        "folders": {folder: _seen(Path(folder)) for folder in folders},
        "sbatch": _sbatch(),
    }


def _imported(name: str) -> dict[str, Any]:
    """Return version and place of a module, or why it cannot be imported."""
    try:
        module = importlib.import_module(name)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"version": getattr(module, "__version__", "?"), "file": module.__file__}


def _seen(folder: Path) -> dict[str, Any]:
    """Return what is wrong with `folder` from here, and how far our clock is off its server's."""
    try:
        token = (folder / FROM_LOGIN).read_text()
        if _created_twice(folder / FROM_LOGIN):
            return {"error": "a name that the login node has created can be created once more"}
        before = time.time()
        with (folder / FROM_NODE).open("w") as stream:
            stream.write(token)
            stream.flush()
            os.fsync(stream.fileno())
        found = (folder / FROM_NODE).stat()
    except OSError as error:
        return {"error": str(error)}
    middle = (before + time.time()) / 2
    return {"uid": found.st_uid, "token": token, "clock_ahead_s": middle - found.st_mtime}


def _created_twice(file: Path) -> bool:
    try:
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _sbatch() -> str | None:
    """Return None where this node may submit, else what sbatch says; nothing is submitted."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))}
    if "SLURM_CONF" in os.environ:
        kept["SLURM_CONF"] = os.environ["SLURM_CONF"]
    command = ["sbatch", "--test-only", "--time=1", "--output=/dev/null", "--wrap=true"]
    try:
        done = subprocess.run(
            command, env=kept, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None if done.returncode == 0 else done.stderr.decode(errors="replace").strip()


def main() -> None:
    """Look, and write what was seen under its name as a whole."""
    result, folders = Path(sys.argv[1]), sys.argv[2:]
    staged = result.with_suffix(".new")
    staged.write_text(json.dumps(look(folders)))
    staged.rename(result)


if __name__ == "__main__":
    main()
