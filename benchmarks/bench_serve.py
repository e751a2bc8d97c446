"""Tokens a second of `hf_runtime` over HTTP, beside a bare `generate` loop with the same batch.

    python benchmarks/bench_serve.py [--batch 16] [--tokens 64] [--rounds 4]

A random Llama of about 30 million parameters; both on one thread, one after the other, the clients
on the rest. Prints both figures and their ratio.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    for name, value in (("batch", 16), ("tokens", 64), ("rounds", 4)):
        parser.add_argument(f"--{name}", type=int, default=value)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(Path(folder, "model"))
        bare = bare_loop(model, asked)
        served = over_http(Path(folder), asked)
    print(f"bare generate {bare:.0f} tokens/s, served {served:.0f}, ratio {served / bare:.2f}")


def make_model(folder: Path) -> Path:
    """Save a model that never ends by itself."""
    import hf_tiny
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    tokenizer = hf_tiny.make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=512, intermediate_size=1536, num_hidden_layers=8,
        num_attention_heads=8, max_position_embeddings=512, bos_token_id=None, eos_token_id=None,
        pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.model_max_length = 512
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    return folder


def bare_loop(folder: Path, asked: argparse.Namespace) -> float:
    """Return tokens a second of `generate` alone."""
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    torch.set_num_threads(1)
    model, tokenizer = (
        LlamaForCausalLM.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )
    rows = tokenizer(["the film is very good"] * asked.batch, return_tensors="pt")
    given = {name: rows[name] for name in ("input_ids", "attention_mask")}
    began, made = 0.0, 0
    for number in range(asked.rounds + 1):
        if number == 1:  # The first one warms up.
            began, made = time.monotonic(), 0
        found = model.generate(**given, max_new_tokens=asked.tokens, do_sample=False)
        made += (found.shape[1] - given["input_ids"].shape[1]) * asked.batch
    return made / (time.monotonic() - began)


def over_http(project: Path, asked: argparse.Namespace) -> float:
    """Return tokens a second of a server that `batch` clients ask at a time."""
    import json

    (project / "nexa.yaml").write_text("{}\n")
    serve = [sys.executable, "-m", "nexa_hpc", "--project", str(project), "serve"]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    options = ["-O", "threads=1", "-O", f"max_batch={asked.batch}"]
    start = [*serve, "start", "model", "--name", "bench", *options]
    done = subprocess.run(start, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    url = done.stdout.strip() + "/v1/completions"
    body = {"model": "model", "prompt": "the film is very good", "temperature": 0}
    content = json.dumps({**body, "max_tokens": asked.tokens}).encode()

    def ask(_: int) -> int:
        request = urllib.request.Request(url, content, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=600) as response:
            return int(json.load(response)["usage"]["completion_tokens"])

    try:
        with concurrent.futures.ThreadPoolExecutor(asked.batch) as pool:
            list(pool.map(ask, range(asked.batch)))
            began = time.monotonic()
            made = sum(pool.map(ask, range(asked.batch * asked.rounds)))
            return made / (time.monotonic() - began)
    finally:
        subprocess.run([*serve, "stop", "bench"], env=environment, check=True)


if __name__ == "__main__":
    main()
