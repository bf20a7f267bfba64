"""Pairs of a context and its continuation as tokens, by the rule of the standard harness (lm_eval's `TemplateLM`).

Spaces at the end of a context belong to the continuation, as they do to a word in most vocabularies; both are encoded
as one text, and the continuation is what comes behind as many tokens as the context alone has. Before the text stands
the symbol that the model saw before every text, if it saw one (Llama's <s>; SmolLM2, GPT-2 and Qwen saw none); an empty
context is that symbol, else the end of text, which is what stands before a new document.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gpt_jax.errors import UserError
from gpt_jax.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Pairs:
    """Token sequences of which the tokens from `starts` on are scored; the first of a sequence is predicted by none.

    sequences: int32 [length] each; the last token is only predicted, so a context of T takes T + 1.
    starts: int [n], at least 1.
    truncated: how many lost tokens at their beginning.
    """

    sequences: list[np.ndarray]
    starts: np.ndarray
    truncated: int

    @property
    def scored_tokens(self) -> np.ndarray:
        """int [n], the tokens of each continuation."""
        return np.array([len(sequence) for sequence in self.sequences]) - self.starts


def encode_pairs(pairs: Sequence[tuple[str, str]], tokenizer: Tokenizer, context_length: int) -> Pairs:
    """All `pairs` of a context and a continuation; what is too long loses its first tokens.

    UserError: a continuation that is empty, or has no token of its own.
    """
    specials = tokenizer.specials
    before = [] if specials.beginning_of_text is None else [specials.beginning_of_text]
    moved = [(context.rstrip(), context[len(context.rstrip()) :] + rest) for context, rest in pairs]
    texts = list(dict.fromkeys(text for context, rest in moved for text in (context, context + rest)))
    ids_of = dict(zip(texts, tokenizer.encode_batch(texts), strict=True))  # what many share is encoded once
    sequences, starts, truncated = [], [], 0
    for context, rest in moved:
        first = before or ([] if context else [specials.end_of_text])
        sequence = np.concatenate([first, ids_of[context + rest]]).astype(np.int32)
        start = len(first) + len(ids_of[context])
        if start >= len(sequence):
            raise UserError(
                f"{context[-40:]!r} is followed by {rest[:40]!r}: no token is left for it. Give it some text."
            )
        cut = max(len(sequence) - context_length - 1, 0)
        truncated += cut > 0
        sequences.append(sequence[cut:])
        starts.append(max(start - cut, 1))
    return Pairs(sequences, np.array(starts, int), truncated)
