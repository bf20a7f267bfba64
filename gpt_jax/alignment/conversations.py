"""Demonstrations: conversations as tables have them, and as the tokens that a model learns to answer with."""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from gpt_jax.data.packing import MarkedText
from gpt_jax.data.rows import Row
from gpt_jax.data.tables import Table
from gpt_jax.errors import UserError
from gpt_jax.text.chat_template import ChatTemplate
from gpt_jax.text.tokenizer import check_unicode

SKIP = "Correct or delete it, or set data.skip_bad_rows, which leaves such rows out and counts them."


@dataclasses.dataclass(frozen=True)
class Conversation:
    """What was said, as {"role": ..., "content": ...}, and where it stands, for messages."""

    messages: tuple[Mapping[str, str], ...]
    place: str

    @property
    def text(self) -> str:
        """By which copies are told."""
        return json.dumps([[message["role"], message["content"]] for message in self.messages])


@dataclasses.dataclass
class Left:
    """Conversations that were left out: how many are `broken`, how many `too_long`."""

    broken: int = 0
    too_long: int = 0


def read_conversations(
    table: Table, columns: Mapping[str, str], *, skip_bad_rows: bool, left: Left
) -> Iterator[Conversation]:
    """The rows of a table as conversations; each has a column of messages, or one of prompts and one of responses.

    Args:
      columns: what the table calls `messages`, `prompt` and `response`.
      left: counts the rows that are passed over.

    Raises:
      UserError: a row that is neither, with its place, unless `skip_bad_rows`.
    """
    for row in table:
        try:
            yield _conversation(row, columns)
        except UserError:
            if not skip_bad_rows:
                raise
            left.broken += 1


def _conversation(row: Row, columns: Mapping[str, str]) -> Conversation:
    messages, prompt, response = (columns[role] for role in ("messages", "prompt", "response"))
    if messages in row.fields:
        found = read_messages(row, messages)
    elif prompt in row.fields and response in row.fields:
        asked = {"role": "user", "content": text_of(row.fields[prompt], f"{row.place}: {prompt}")}
        found = (asked, {"role": "assistant", "content": text_of(row.fields[response], f"{row.place}: {response}")})
    else:
        raise UserError(
            f"{row.place}: there is no column {messages!r}, nor {prompt!r} with {response!r}. There are: "
            f"{', '.join(row.fields)}. Say what yours are called: data.columns.messages, or data.columns.prompt and "
            "data.columns.response."
        )
    if not any(message["role"] == "assistant" for message in found):
        raise UserError(f"{row.place}: a conversation without a message of the role 'assistant'. {SKIP}")
    return Conversation(found, row.place)


def read_messages(row: Row, column: str) -> tuple[dict[str, str], ...]:
    """The messages in a column of a row; UserError: they are none."""
    value = row.fields[column]
    if not isinstance(value, list) or not value:
        raise UserError(
            f'{row.place}: {column} is {str(value)[:80]!r}. Expected a list of messages, {{"role": "user" or '
            f'"assistant", "content": text}}. {SKIP}'
        )
    return tuple(_message(message, number, row) for number, message in enumerate(value, 1))


def _message(value: Any, number: int, row: Row) -> dict[str, str]:
    if not isinstance(value, dict) or not isinstance(value.get("role"), str):
        raise UserError(
            f'{row.place}: message {number} is {str(value)[:80]!r}. Expected an object with "role" and "content". '
            f"{SKIP}"
        )
    return {"role": value["role"], "content": text_of(value.get("content"), f"{row.place}: message {number}")}


def text_of(value: Any, what: str) -> str:
    """`value`, which is a text; UserError: it is none, says the message of `what`."""
    if not isinstance(value, str):
        raise UserError(f"{what} has no text but {str(value)[:80]!r}. {SKIP}")
    try:
        check_unicode(value)
    except UserError as error:
        raise UserError(f"{what}: {error} {SKIP}") from None
    return value


def demonstrations(
    conversations: Iterable[Conversation], template: ChatTemplate, length: int, *, skip_bad_rows: bool, left: Left
) -> list[MarkedText]:
    """The conversations as tokens of which the assistant's count, each up to its last answer.

    Args:
      length: positions that there are for one; left: counts those that are passed over.

    Raises:
      UserError: the template does not take one, or one is too long, unless `skip_bad_rows`.
    """
    found, too_long = [], []
    for conversation in conversations:
        try:
            text = MarkedText(*template.encode_answers(conversation.messages))
        except UserError as error:
            if skip_bad_rows:
                left.broken += 1
                continue
            raise UserError(f"{conversation.place}: {error}") from None
        if text.positions > length:
            too_long.append((conversation.place, text.positions))
        else:
            found.append(text)
    left.too_long += len(too_long)
    if too_long and not skip_bad_rows:
        place, positions = too_long[0]
        raise UserError(
            f"{place}: a conversation of {positions + 1:,} tokens, and data.sequence_length={length} has room for "
            f"{length + 1:,}. So it is with {len(too_long):,} of {len(found) + len(too_long):,} conversations, the "
            f"longest of {max(size for _, size in too_long) + 1:,} tokens. Raise data.sequence_length, or set "
            "data.skip_bad_rows, which leaves them out and counts them."
        )
    return found


def answer_tokens(texts: Iterable[MarkedText]) -> int:
    """How many tokens count."""
    return int(sum(np.count_nonzero(text.counted[1:]) for text in texts))
