"""The server as a process: takes its port, loads the model, serves until it is asked to stop.

It listens before the model is loaded, so that a port that is taken is told at once; who asks
meanwhile waits.
"""

from __future__ import annotations

import argparse
import os
import socket
from pathlib import Path
from typing import Any

from nexa_hpc.backends.hf import gentle
from nexa_hpc.backends.hf_runtime.options import TOKEN_VARIABLE

_BACKLOG = 2048
_LONGEST = 4096
"""Tokens of a text, where a model's configuration names no limit."""


def main() -> None:
    """Serve what the command line says."""
    asked = _parser().parse_args()
    family = socket.AF_INET6 if ":" in asked.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((asked.host, asked.port))
    listener.listen(_BACKLOG)
    gentle.load_torch()
    import uvicorn

    app = _app(asked)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5, backlog=_BACKLOG)
    print(f"serving {asked.served_model_name} on {asked.host}:{asked.port}", flush=True)
    uvicorn.Server(config).run(sockets=[listener])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hf_runtime", allow_abbrev=False)
    for name in ("model", "served-model-name", "project", "host"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--port", type=int, required=True)
    for name in ("task", "device"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--max-batch", type=int, default=32)
    parser.add_argument("--max-queue", type=int, default=512)
    parser.add_argument("--max-model-len", type=int)
    parser.add_argument("--threads", type=int)
    for name in ("trust-remote-code", "allow-pickle"):
        parser.add_argument(f"--{name}", action="store_true")
    return parser


def _app(asked: argparse.Namespace) -> Any:
    import torch

    from nexa_hpc.backends.hf import models
    from nexa_hpc.backends.hf.sources import Source
    from nexa_hpc.backends.hf_runtime.app import make_app
    from nexa_hpc.backends.hf_runtime.batching import Batcher
    from nexa_hpc.backends.hf_runtime.classifying import Classifier
    from nexa_hpc.backends.hf_runtime.exchange import Served
    from nexa_hpc.backends.hf_runtime.generating import Generator

    if asked.threads:
        torch.set_num_threads(asked.threads)
    source = Source(Path(asked.model), None, None, asked.model)
    trust = models.Trust(asked.trust_remote_code, asked.allow_pickle)
    model, tokenizer, task = models.open_checkpoint(source, asked.task, trust, Path(asked.project))
    device = asked.device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to(device=device, dtype=getattr(torch, asked.dtype)).eval()
    is_classifier = task == models.CLASSIFICATION
    worker = Classifier(model, tokenizer) if is_classifier else Generator(model, tokenizer)
    batcher = Batcher(worker.compute, max_batch=asked.max_batch, max_queue=asked.max_queue)
    return make_app(
        Served(
            asked.served_model_name,
            batcher,
            tokenizer,
            asked.max_model_len or _limit(model, tokenizer),
            is_classifier,
            os.environ.pop(TOKEN_VARIABLE, None),
        )
    )


def _limit(model: Any, tokenizer: Any) -> int:
    said = (getattr(model.config, "max_position_embeddings", None), tokenizer.model_max_length)
    return min([n for n in said if isinstance(n, int) and 0 < n < 1 << 30], default=_LONGEST)


if __name__ == "__main__":
    main()
