"""What reward models and DPO learn from: ranked answers read, divided into training and validation, and encoded."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from gpt_jax.alignment.conversations import Left
from gpt_jax.alignment.ranked_answers import AnswerEncoder, RankedAnswers, encode_ranked, read_ranked_answers
from gpt_jax.data.packing import MarkedText
from gpt_jax.data.ranked_batches import RankedSet
from gpt_jax.data.tables import open_table, split_held_out
from gpt_jax.errors import UserError
from gpt_jax.parallel.runtime import announce
from gpt_jax.runs.aligning.start import Start

PAIRS = ("all", "best_worst")


@dataclasses.dataclass(frozen=True)
class Split:
    """The prompts of one split with their answers, and as the model reads them."""

    rows: list[RankedAnswers]
    encoded: RankedSet


@dataclasses.dataclass(frozen=True)
class Comparisons:
    """What the run learns from, and the facts about it."""

    train: Split
    valid: Split
    facts: dict[str, Any]


def open_comparisons(config: ConfigDict, start: Start) -> Comparisons:
    """Reads the ranked answers, divides them by their prompts into training and validation, and encodes them.

    Raises:
      UserError: for what is wrong with them.
    """
    data, left = config.data, Left()
    encode = AnswerEncoder(start.tokenizer, start.template, config.data.last_messages)

    def read(address: str) -> list[RankedAnswers]:
        table = open_table(address, encoding=data.encoding, skip_bad_rows=data.skip_bad_rows)
        rows = list(
            read_ranked_answers(
                table, data.columns, as_text=encode.as_text, skip_bad_rows=data.skip_bad_rows, left=left
            )
        )
        left.broken += table.skipped
        return [row.best_and_worst() for row in rows] if data.pairs == "best_worst" else rows

    if data.pairs not in PAIRS:
        raise UserError(f"data.pairs={data.pairs!r}: expected one of {', '.join(PAIRS)}.")
    if data.validation_address:
        splits = {"train": read(data.source), "valid": read(data.validation_address)}
    else:
        held_out = split_held_out(read(data.source), lambda row: row.prompt_text, data.validation_fraction)
        splits = dict(zip(("train", "valid"), held_out, strict=True))
    facts: dict[str, Any] = {
        "tokenizer": start.tokenizer.fingerprint,
        "template": None if start.template is None else hashlib.sha256(start.template.source.encode()).hexdigest(),
    }
    found = {}
    for name, rows in splits.items():
        kept, texts = encode_ranked(rows, encode, data.sequence_length, skip_bad_rows=data.skip_bad_rows, left=left)
        if not kept:
            raise UserError(f"{data.source}: no prompt with its answers is left in the split {name!r}.")
        found[name] = Split(kept, ranked_set(kept, texts, start.tokenizer.specials.pad, data.sequence_length))
        facts[name] = facts_of(kept, texts)
    facts["left_out"] = dataclasses.asdict(left)
    if left.broken or left.too_long:
        announce(f"left out: {left.broken:,} rows that are no comparisons, {left.too_long:,} that are too long")
    return Comparisons(found["train"], found["valid"], facts)


def ranked_set(
    rows: Sequence[RankedAnswers], texts: Sequence[Sequence[MarkedText]], pad: int, length: int
) -> RankedSet:
    """The rows as batches are made of them, their ranks as whole numbers from 0 on."""
    shape = len(rows), max(len(row.answers) for row in rows)
    starts, ranks = np.zeros(shape, int), np.zeros(shape, np.float32)
    for number, (row, own) in enumerate(zip(rows, texts, strict=True)):
        starts[number, : len(own)] = [np.argmax(text.counted) for text in own]
        ranks[number, : len(own)] = np.unique(row.ranks, return_inverse=True)[1]
    sequences = [[text.ids for text in own] for own in texts]
    return RankedSet(sequences, None, pad, length, starts=starts, columns={"ranks": ranks})


def facts_of(rows: Sequence[RankedAnswers], texts: Sequence[Sequence[MarkedText]]) -> dict[str, Any]:
    """What data.json keeps of a split, to notice that it has changed."""
    digest = hashlib.sha256()
    for row, own in zip(rows, texts, strict=True):
        for text, rank in zip(own, row.ranks, strict=True):
            digest.update(text.ids.tobytes() + text.counted.tobytes() + repr(float(rank)).encode())
        digest.update(repr(row.reference).encode())
    pairs = sum(one < other for row in rows for one in row.ranks for other in row.ranks)
    return {
        "prompts": len(rows),
        "answers": sum(len(row.answers) for row in rows),
        "pairs": pairs,
        "tokens": sum(len(text.ids) for own in texts for text in own),
        "digest": digest.hexdigest(),
    }
