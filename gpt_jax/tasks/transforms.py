"""Structured examples to token sequences: Figure 1 of the GPT-1 paper, for training, evaluation and prediction alike.

classification    start text extract
entailment        start premise delimiter hypothesis extract
similarity        start first delimiter second extract, and start second delimiter first extract
multiple choice   start context question delimiter answer extract, for each answer

Each part alone keeps its first tokens, as in OpenAI's code (finetune-transformer-lm, train.py, transform_roc), whether
or not the whole would fit: of two parts, context_length // 2 - 2 each.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gpt_jax.errors import UserError
from gpt_jax.tasks.examples import Classification, Entailment, Example, Inputs, MultipleChoice, Similarity
from gpt_jax.text.tokenizer import FINE_TUNING_SYMBOLS, Tokenizer

Sequences = tuple[np.ndarray, ...]  # int32 [length] each


@dataclass(frozen=True)
class Symbols:
    """The ids of the symbols that no text spells."""

    start: int
    delimiter: int
    extract: int


@dataclass(frozen=True)
class Encoded:
    """Examples as token sequences.

    sequences: of each example, one (classification, entailment), two (similarity) or one for each answer; int32, the
        first token `start`, the last and no other one `extract`.
    parts, truncated_parts: texts in all, and those of them that were cut.
    """

    sequences: list[Sequences]
    parts: int
    truncated_parts: int


def symbols_of(tokenizer: Tokenizer) -> Symbols:
    """UserError: the vocabulary lacks one of them."""
    ids = {name: getattr(tokenizer.specials, name) for name in FINE_TUNING_SYMBOLS}
    if missing := [name for name, id in ids.items() if id is None]:
        raise UserError(
            f"The tokenizer (kind {tokenizer.kind!r}, {tokenizer.vocab_size:,} ids) has no symbol for "
            f"{', '.join(missing)}, which fine-tuning puts around the texts. Append them: "
            "gpt_jax.text.symbols.with_fine_tuning_symbols(tokenizer)."
        )
    return Symbols(**ids)


def part_limit(inputs: Inputs, context_length: int) -> int:
    """The tokens that each part of `inputs` may have. UserError: not one."""
    parts = 1 if isinstance(inputs, Classification) else 2
    limit = context_length // parts - 2
    if limit < 1:
        raise UserError(
            f"model.context_length={context_length} leaves no room for text between the special symbols. Expected at "
            f"least {3 * parts}."
        )
    return limit


def arrange(inputs: Inputs, ids: Sequence[np.ndarray], symbols: Symbols, limit: int) -> tuple[Sequences, int]:
    """The sequences of `inputs`, whose `parts` have the `ids`; and how many of the parts were cut to `limit` tokens.

    Of a context with a question, together one part, the context is cut, so that the question is still asked.
    """
    start, delimiter, extract = ([symbol] for symbol in (symbols.start, symbols.delimiter, symbols.extract))
    if isinstance(inputs, MultipleChoice):
        context, question, *answers = ids
        question = question[:limit]
        asked = np.concatenate([context[: limit - len(question)], question])
        cut = sum(len(answer) > limit for answer in answers) + (len(ids[0]) + len(ids[1]) > limit)
        return tuple(_join(start, asked, delimiter, answer[:limit], extract) for answer in answers), cut
    cut = sum(len(part) > limit for part in ids)
    parts = [part[:limit] for part in ids]
    match inputs:
        case Classification():
            return (_join(start, *parts, extract),), cut
        case Entailment():
            premise, hypothesis = parts
            return (_join(start, premise, delimiter, hypothesis, extract),), cut
        case Similarity():
            first, second = parts
            return (
                _join(start, first, delimiter, second, extract),
                _join(start, second, delimiter, first, extract),
            ), cut
    raise TypeError(f"no transformation for {type(inputs).__name__}")


def _join(*parts: Sequence[int]) -> np.ndarray:
    return np.concatenate([np.asarray(part, np.int32) for part in parts])


def encode(examples: Sequence[Example], tokenizer: Tokenizer, context_length: int) -> Encoded:
    """All `examples` as sequences of at most `context_length` tokens.

    UserError: a text that the tokenizer has no token for, with its place; a tokenizer without the special symbols.
    """
    symbols = symbols_of(tokenizer)
    texts = list(dict.fromkeys(part for example in examples for part in example.inputs.parts))
    ids_of = dict(zip(texts, tokenizer.encode_batch(texts), strict=True))  # what many examples share is encoded once
    sequences, parts, truncated_parts = [], 0, 0
    for example in examples:
        ids = [ids_of[part] for part in example.inputs.parts]
        for text, own in zip(example.inputs.parts, ids, strict=True):
            if text and not len(own):
                raise UserError(
                    f"{example.place}: the tokenizer has no token for the text {text[:40]!r}. Correct or delete the "
                    "example."
                )
        arranged, cut = arrange(example.inputs, ids, symbols, part_limit(example.inputs, context_length))
        sequences.append(arranged)
        parts += len(ids) - isinstance(example.inputs, MultipleChoice)  # a context and its question are one
        truncated_parts += cut
    return Encoded(sequences, parts, truncated_parts)
