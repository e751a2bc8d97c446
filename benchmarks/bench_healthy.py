"""Seconds until a server answers: by `serve start`, beside its bare command, in turns.

    python benchmarks/bench_healthy.py [--rounds 3]
    python benchmarks/bench_healthy.py --backend vllm --model FOLDER --python VENV/bin/python \
        -O dtype=float32 -O max_model_len=512

`hf_runtime` with a tiny model unless asked otherwise. Both listen on a port that was free; the bare
one is asked every 0.1 s, ours by its supervisor every 0.5 s. Prints the medians and their ratio.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]

POLL_S = 0.5


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backend", default="hf_runtime")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("-O", dest="options", action="append", default=[])
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        (project / "nexa.yaml").write_text("{}\n")
        model = asked.model.resolve() if asked.model else make_model(project / "model")
        start = [
            sys.executable, "-m", "nexa_hpc", "--project", folder, "serve", "start", str(model),
            "--name", "bench", "--backend", asked.backend, "--python", asked.python,
            *(word for option in asked.options for word in ("-O", option)),
        ]  # fmt: skip
        turns = [(bare(start), ours(start, folder)) for _ in range(asked.rounds)]
    alone, held = (statistics.median(column) for column in zip(*turns, strict=True))
    told = f"({held - POLL_S:.2f} s without one poll, ratio {(held - POLL_S) / alone:.2f})"
    print(f"{asked.backend}: bare {alone:.2f} s, serve start {held:.2f} s {told}")


def make_model(folder: Path) -> Path:
    """Save a tiny causal model."""
    import served

    return served.save_tiny_model(folder)


def bare(start: list[str]) -> float:
    """Return how long the bare command takes to answer."""
    from nexa_hpc.core.servers import answers

    port = free_port()
    told = run([*start, "--port", str(port), "--dry-run"])
    began = time.monotonic()
    server = subprocess.Popen(
        shlex.split(told), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        while answers(f"http://127.0.0.1:{port}") is not None:
            if server.poll() is not None:
                raise SystemExit(f"the bare server exited with {server.returncode}: {told}")
            time.sleep(0.1)
        return time.monotonic() - began
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def ours(start: list[str], folder: str) -> float:
    """Return how long `serve start` takes to return."""
    began = time.monotonic()
    try:
        run([*start, "--port", str(free_port())])
        return time.monotonic() - began
    finally:
        run([sys.executable, "-m", "nexa_hpc", "--project", folder, "serve", "stop", "bench"])


def run(command: list[str]) -> str:
    """Return what a command prints, which must succeed."""
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{shlex.join(command)}\n{done.stderr}")
    return done.stdout


def environment() -> dict[str, str]:
    """Return the variables of what is started."""
    return {**os.environ, "PYTHONPATH": str(HERE.parent)}


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
