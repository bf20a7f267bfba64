"""Symbols for fine-tuning, appended to a vocabulary that has none.

GPT-1's fine-tuning puts a start symbol before an example, a delimiter between its parts and an "extract" symbol at its
end, whose hidden state is classified. They are not in the pretrained vocabulary: OpenAI's code gives them the ids
behind it, in this order (finetune-transformer-lm, train.py: `encoder['_start_'] = len(encoder)` and so on).
"""

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from gpt_jax.errors import UserError
from gpt_jax.text.tokenizer import FINE_TUNING_SYMBOLS, Tokenizer, save_model


def missing_symbols(tokenizer: Tokenizer) -> tuple[str, ...]:
    """Those of `FINE_TUNING_SYMBOLS` that `tokenizer` has no id for."""
    return tuple(name for name in FINE_TUNING_SYMBOLS if getattr(tokenizer.specials, name) is None)


def with_fine_tuning_symbols(tokenizer: Tokenizer) -> Tokenizer:
    """`tokenizer`, with the missing symbols at the end of the vocabulary: ids V, V + 1, ... in OpenAI's order."""
    missing = missing_symbols(tokenizer)
    if isinstance(tokenizer, AppendedSymbols):
        return AppendedSymbols(tokenizer.base, [*tokenizer.appended, *missing]) if missing else tokenizer
    return AppendedSymbols(tokenizer, missing) if missing else tokenizer


class AppendedSymbols:
    """A `Tokenizer` whose `base` lacks the symbols `appended`: they follow its vocabulary and no text spells them."""

    def __init__(self, base: Tokenizer, appended: Sequence[str]):
        if not set(appended) <= set(missing_symbols(base)) or len(set(appended)) != len(appended):
            raise UserError(
                f"A tokenizer of kind {base.kind!r} cannot take the appended symbols {', '.join(map(str, appended))}; "
                f"it lacks {', '.join(missing_symbols(base)) or 'none'}. Its manifest is damaged: rebuild it."
            )
        self.base = base
        self.appended = tuple(appended)
        self.kind = base.kind
        self.lossless = base.lossless
        self.chat_template = base.chat_template
        self.symbol_names = base.symbol_names
        self.vocab_size = base.vocab_size + len(appended)
        self.specials = replace(base.specials, **{name: base.vocab_size + i for i, name in enumerate(appended)})
        self.token_bytes = np.append(base.token_bytes, np.zeros(len(appended), np.int32))
        self.symbols = base.symbols | {f"<|{name}|>": base.vocab_size + i for i, name in enumerate(appended)}
        self.fingerprint = hashlib.sha256(" ".join([base.fingerprint, *appended]).encode()).hexdigest()

    def encode(self, text: str) -> np.ndarray:
        """Ids of `text`, int32 [n]: those of `base`."""
        return self.base.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of each text, as fast as `base` does it."""
        return self.base.encode_batch(texts)

    def encode_parts(self, parts: Sequence[str | int]) -> np.ndarray:
        """Ids of texts with special symbols, given by id, between them, int32 [n]; appended ones change no text."""
        groups = itertools.groupby(parts, lambda part: isinstance(part, int) and part >= self.base.vocab_size)
        ids = [np.array([*group], np.int32) if own else self.base.encode_parts([*group]) for own, group in groups]
        return np.concatenate([np.zeros(0, np.int32), *ids])

    def last_cut(self, text: str) -> int:
        """That of `base`."""
        return self.base.last_cut(text)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text that `ids` spell; the appended symbols spell nothing."""
        return self.base.decode([id for id in ids if id < self.base.vocab_size])

    def model_file(self) -> tuple[str, bytes]:
        """The model file of `base`: the appended symbols stand in the manifest."""
        return self.base.model_file()

    def save(self, directory: Path) -> None:
        """Writes what `load_tokenizer` needs into `directory`."""
        save_model(directory, self, self.appended)
