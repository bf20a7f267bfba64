"""What supervised fine-tuning learns from: conversations read, divided into training and validation, and packed."""

import contextlib
import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from gpt_jax.alignment.conversations import (
    Conversation,
    Left,
    answer_tokens,
    demonstrations,
    read_conversations,
)
from gpt_jax.data.packing import MarkedText, PackedTexts
from gpt_jax.data.tables import open_table, split_held_out
from gpt_jax.errors import UserError
from gpt_jax.parallel.runtime import announce
from gpt_jax.text.chat_template import ChatTemplate
from gpt_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Demonstrations:
    """What the run learns from: rows of conversations, the questions that samples answer, the facts about it all."""

    train: PackedTexts
    valid: PackedTexts
    questions: list[list[int]]
    facts: dict[str, Any]


def open_demonstrations(config: ConfigDict, tokenizer: Tokenizer, template: ChatTemplate) -> Demonstrations:
    """Reads the conversations, divides them into training and validation, and packs them into rows.

    Raises:
      UserError: for what is wrong with them.
    """
    data, left = config.data, Left()

    def read(address: str) -> list[Conversation]:
        table = open_table(address, encoding=data.encoding, skip_bad_rows=data.skip_bad_rows)
        rows = list(read_conversations(table, data.columns, skip_bad_rows=data.skip_bad_rows, left=left))
        left.broken += table.skipped
        if not rows:
            raise UserError(
                f"{address}: no row of it is a conversation, and data.skip_bad_rows left them all out. Set it back to "
                "be told what is wrong with the first."
            )
        return rows

    if data.validation_address:
        splits = {"train": read(data.source), "valid": read(data.validation_address)}
    else:
        held_out = split_held_out(read(data.source), lambda one: one.text, data.validation_fraction)
        splits = dict(zip(("train", "valid"), held_out, strict=True))
    facts: dict[str, Any] = {
        "tokenizer": tokenizer.fingerprint,
        "template": hashlib.sha256(template.source.encode()).hexdigest(),
    }
    packed = {}
    for split, conversations in splits.items():
        texts = demonstrations(
            conversations, template, data.sequence_length, skip_bad_rows=data.skip_bad_rows, left=left
        )
        packed[split] = pack(split, texts, config, tokenizer.specials.pad)
        facts[split] = {
            "conversations": len(texts),
            "tokens": sum(len(text.ids) for text in texts),
            "answer_tokens": answer_tokens(texts),
            "rows": len(packed[split]),
            "digest": hashlib.sha256(b"".join(text.ids.tobytes() for text in texts)).hexdigest(),
        }
    facts["left_out"] = dataclasses.asdict(left)
    if left.broken or left.too_long:
        announce(f"left out: {left.broken:,} rows that are no conversations, {left.too_long:,} that are too long")
    questions = questions_of(splits["valid"], config, template)
    return Demonstrations(packed["train"], packed["valid"], questions, facts)


def pack(split: str, texts: Sequence[MarkedText], config: ConfigDict, pad: int) -> PackedTexts:
    """The rows of a split; UserError: there are none, or none of their tokens counts."""
    if not answer_tokens(texts):
        raise UserError(f"{config.data.source}: no conversation is left in the split {split!r} to learn from.")
    return PackedTexts(texts, config.data.sequence_length, pad, packed=config.data.packing)


def questions_of(conversations: Sequence[Conversation], config: ConfigDict, template: ChatTemplate) -> list[list[int]]:
    """Ids of the first held-out conversations up to where their first answer begins, as many as samples are wanted."""
    found = []
    for conversation in conversations:
        if len(found) == config.report.samples:
            break
        roles = [message["role"] for message in conversation.messages]
        with contextlib.suppress(UserError):  # of conversations that were left out
            ids = template.encode(conversation.messages[: roles.index("assistant")]).tolist()
            if len(ids) + config.report.sample_tokens <= config.data.sequence_length:
                found.append(ids)
    return found
