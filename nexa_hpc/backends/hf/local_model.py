"""A model in this process, judged by evaluation: its losses, and its answers, in batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from nexa_hpc.backends.hf import chats, recipes
from nexa_hpc.backends.hf.chats import Answer, Decoding, Example
from nexa_hpc.backends.hf.losses import token_losses
from nexa_hpc.backends.hf.perplexity import Piece
from nexa_hpc.backends.hf_runtime.batching import Work
from nexa_hpc.backends.hf_runtime.generating import Generator, Prompt, Sampling
from nexa_hpc.backends.hf_runtime.generating import Piece as Said
from nexa_hpc.errors import StepError


@dataclass(frozen=True)
class LocalModel:
    """A model with its tokenizer, on its device."""

    title: str
    model: Any
    tokenizer: Any
    batch_size: int
    """How many rows it is given at once."""

    @property
    def pace(self) -> dict[str, int]:
        """How the work is divided, for the report."""
        return {"batch_size": self.batch_size}

    def length_limit(self, settings: Mapping[str, Any], task: str) -> int:
        """Return how many tokens it reads at once."""
        return recipes.length_limit(settings, task, self.tokenizer, self.model.config)

    def token_ids(self, texts: Sequence[str]) -> list[Piece]:
        """Return the tokens of each text."""
        found: list[Piece] = self.tokenizer(list(texts))["input_ids"]
        return found

    def piece_losses(self, pieces: Sequence[Piece]) -> Iterator[tuple[int, float]]:
        """Yield the place and the summed loss of each piece."""
        self.model.eval()
        for start in range(0, len(pieces), self.batch_size):
            batch = pieces[start : start + self.batch_size]
            losses = token_losses(self.model, batch).sum(dim=1)
            yield from enumerate(map(float, losses), start)

    def answers(
        self, examples: Sequence[Example], decoding: Decoding
    ) -> Iterator[tuple[int, Answer]]:
        """Yield the place of each example and the answer to it.

        Raises StepError for prompts that leave no room for an answer, before any is generated.
        """
        self.model.eval()
        prompts = [self._prompt(example, decoding) for example in examples]
        self._check_room(prompts, decoding)
        generator = Generator(self.model, self.tokenizer)
        # Rows of like length together: a batch is padded to its longest row.
        order = sorted(range(len(prompts)), key=lambda row: len(prompts[row].ids))
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            said: dict[int, Said] = {}
            generator.compute([Work(prompts[n], None, partial(said.__setitem__, n)) for n in rows])
            yield from (
                (n, Answer(said[n].text, said[n].tokens, str(said[n].finish))) for n in rows
            )

    def _prompt(self, example: Example, decoding: Decoding) -> Prompt:
        sampled = decoding.temperature > 0
        sampling = Sampling(decoding.temperature, seed=decoding.seed if sampled else None)
        ids = tuple(self._ids(example.prompt))
        return Prompt(ids, decoding.max_new_tokens, sampling, decoding.stop)

    def _ids(self, prompt: str | chats.Chat) -> Sequence[int]:
        if isinstance(prompt, str):
            found: Sequence[int] = self.tokenizer(prompt)["input_ids"]
            return found
        try:
            return chats.chat_ids(self.tokenizer, prompt)
        except Exception as error:
            # A template is the model's own program, and may raise anything.
            raise StepError(
                f"the tokenizer of {self.title} makes no prompt of a chat: {error}",
                hint="give rows with `prompt_column` and `reference_column` instead",
            ) from error

    def _check_room(self, prompts: Sequence[Prompt], decoding: Decoding) -> None:
        limit = recipes.positions(self.tokenizer, self.model.config)
        longest = max(range(len(prompts)), key=lambda row: len(prompts[row].ids))
        needed = len(prompts[longest].ids) + decoding.max_new_tokens
        if limit is not None and needed > limit:
            raise StepError(
                f"row {longest + 1} and its answer take {needed} tokens, and {self.title} reads "
                f"{limit}",
                hint=f"lower `max_new_tokens` ({decoding.max_new_tokens}), or shorten the prompts",
            )
