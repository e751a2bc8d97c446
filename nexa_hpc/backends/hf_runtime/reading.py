"""What a model makes of a text that is there: its tokens, and how probable each of them is.

`/tokenize`, and `/v1/completions` with `echo`, answer as vLLM does. Called by the app.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from fastapi import Request

from nexa_hpc.backends.hf_runtime import exchange
from nexa_hpc.backends.hf_runtime.bodies import TokenizeBody
from nexa_hpc.backends.hf_runtime.exchange import Refusal, Served
from nexa_hpc.backends.hf_runtime.generating import MOST_READ, Reading


def tokenize(served: Served, body: TokenizeBody) -> dict[str, Any]:
    """Return the ids of the tokens of a text, however long it is."""
    ids = served.tokenizer(body.prompt, add_special_tokens=body.add_special_tokens)["input_ids"]
    about = {"count": len(ids), "max_model_len": served.max_model_len}
    return {**about, "tokens": ids, "token_strs": None}


async def read_prompts(
    served: Served, prompts: Sequence[Any], ids: Sequence[tuple[int, ...]], request: Request
) -> dict[str, Any]:
    """Return choices and usage: each prompt with the log-probability of each of its tokens."""
    for tokens in ids:
        exchange.check_fits(served, len(tokens))
        if len(tokens) > MOST_READ:
            message = f"{len(tokens)} tokens are more than the {MOST_READ} that are read at once"
            raise Refusal(400, message, "context_length_exceeded")
    works, pieces = exchange.works_for([Reading(tokens) for tokens in ids], Reading)
    exchange.submit(served, works)
    found: list[Sequence[float]] = [() for _ in works]
    async for index, logprobs in exchange.watched(works, pieces, request):
        found[index] = logprobs
    choices = [
        _choice(served, index, prompt, tokens, logprobs)
        for index, (prompt, tokens, logprobs) in enumerate(zip(prompts, ids, found, strict=True))
    ]
    read = sum(map(len, ids))
    usage = {"prompt_tokens": read, "completion_tokens": 0, "total_tokens": read}
    return {"choices": choices, "usage": usage}


def _choice(
    served: Served, index: int, prompt: Any, ids: Sequence[int], logprobs: Sequence[float]
) -> dict[str, Any]:
    tokens = [served.tokenizer.decode([number]) for number in ids]
    told = {
        "tokens": tokens,
        "token_logprobs": [None, *logprobs],
        "top_logprobs": None,
        "text_offset": [0, *accumulate(map(len, tokens[:-1]))],
    }
    text = prompt if isinstance(prompt, str) else served.tokenizer.decode(list(ids))
    return {"index": index, "text": text, "finish_reason": "length", "logprobs": told}
