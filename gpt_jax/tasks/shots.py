"""Solved examples in a prompt: which ones, how many fit, and what then stands before the one that is asked."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gpt_jax.errors import UserError
from gpt_jax.tasks.pairs import encode_pairs
from gpt_jax.tasks.prompting import PromptedExample
from gpt_jax.tasks.templates import Template
from gpt_jax.text.tokenizer import Tokenizer

MOST_SHOTS = 100  # of "most", where the context would hold still more: about what GPT-3 used at most
_UNLIMITED = 2**40


def draw_shots(number: int, most: int, pool: int, *, seed: int, task: str, asked_in_pool: bool) -> list[int]:
    """Up to `most` different rows of a pool of `pool`, for the asked example `number`, at random by `seed`.

    Each example draws its own (GPT-3 §2.4); fewer shots are the first of more.

    Args:
      asked_in_pool: whether the asked rows are the pool, of which then the asked one is left out.
    """
    # The raw bits of a generator are the same in every version of NumPy; its choices need not be.
    bits = np.random.PCG64(np.random.SeedSequence([seed, zlib.crc32(task.encode()), number]))
    left_out = {number} if asked_in_pool else set()
    most = min(most, pool - len(left_out))
    drawn: dict[int, None] = {}
    while len(drawn) < most:
        drawn |= dict.fromkeys(int(n) for n in bits.random_raw(max(most, 16)) % pool if int(n) not in left_out)
    return list(drawn)[:most]


def prefix_of(shots: Sequence[str], template: Template) -> str:
    """What stands before an example: the description and the solved examples, the first drawn nearest to it."""
    parts = [template.description, *reversed(shots)] if template.description else [*reversed(shots)]
    return "".join(part + template.delimiter for part in parts)


@dataclass(frozen=True)
class Room:
    """The tokens that a model has for each prompt of some examples.

    task: its name, for messages.
    """

    task: str
    examples: Sequence[PromptedExample]
    template: Template
    tokenizer: Tokenizer
    context_length: int

    @property
    def tokens(self) -> int:
        """The most that a prompt with its longest candidate may have: the last token of a candidate is not read."""
        free_form = self.template.kind == "free_form"
        return self.context_length - (self.template.max_new_tokens if free_form else -1)

    @property
    def alone(self) -> list[str]:
        """What stands before each example that has no shots."""
        return [prefix_of([], self.template)] * len(self.examples)

    def lengths(self, prefixes: Sequence[str]) -> np.ndarray:
        """int [examples]: the tokens of each prompt with its longest candidate."""
        prompted = [one.after(prefix) for one, prefix in zip(self.examples, prefixes, strict=True)]
        endings = [one.continuations or ("?",) for one in prompted]
        pairs = [
            pair for one, ends in zip(prompted, endings, strict=True) for pair in zip(one.contexts, ends, strict=True)
        ]
        sizes = np.array([len(sequence) for sequence in encode_pairs(pairs, self.tokenizer, _UNLIMITED).sequences])
        return np.maximum.reduceat(sizes, np.cumsum([0, *(len(ends) for ends in endings[:-1])]))

    def too_long(self, prefixes: Sequence[str]) -> int:
        """How many prompts do not fit, and lose their first tokens."""
        return int((self.lengths(prefixes) > self.tokens).sum())

    def prefixes(self, shots: Sequence[Sequence[str]]) -> list[str]:
        """What stands before each example, with all its `shots`. UserError: that does not fit."""
        prefixes = [prefix_of(own, self.template) for own in shots]
        lengths = self.lengths(prefixes)
        # What is too long by itself is cut, and told, where it is asked without shots.
        over = (lengths > self.tokens) & (self.lengths(self.alone) <= self.tokens)
        if over.any():
            count = max(map(len, shots))
            raise UserError(
                f"data.shots={count}: of {self.task}, {over.sum():,} of {len(shots):,} prompts do not fit: the longest "
                f"has {lengths.max():,} tokens, and there is room for {self.tokens:,} (model.context_length="
                f"{self.context_length:,}). Ask for fewer, or for as many as fit each: shots=most."
            )
        return prefixes

    def as_many_as_fit(self, shots: Sequence[Sequence[str]]) -> list[Sequence[str]]:
        """Of the `shots` of each example the first ones, as many as there is room for."""
        texts = list(dict.fromkeys(text for own in shots for text in own))
        encoded = self.tokenizer.encode_batch([text + self.template.delimiter for text in texts])
        size = {text: len(ids) for text, ids in zip(texts, encoded, strict=True)}
        left = self.tokens - self.lengths(self.alone)
        needed = [np.cumsum([size[text] for text in own]) for own in shots]
        counts = np.array([int((sums <= room).sum()) for sums, room in zip(needed, left, strict=True)])
        while True:  # a text's tokens are not quite the sum of its parts'
            chosen = [own[:count] for own, count in zip(shots, counts, strict=True)]
            over = self.lengths([prefix_of(own, self.template) for own in chosen]) > self.tokens
            if not (over & (counts > 0)).any():
                return chosen
            counts[over & (counts > 0)] -= 1
