"""Questions: prompts without answers, as tables and texts have them, for a policy to answer."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from gpt_jax.alignment.conversations import SKIP, Left, read_messages, text_of
from gpt_jax.alignment.ranked_answers import Prompt
from gpt_jax.data.rows import Row
from gpt_jax.data.sources import Source
from gpt_jax.data.tables import Table
from gpt_jax.errors import UserError
from gpt_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Question:
    """A prompt: a text, or what was said up to where an answer is due.

    Attributes:
      columns: what else stands in its row, for rewards that look at it.
      demonstration: the answer that its row has, if any.
      place: where it stands, for messages.
    """

    prompt: Prompt
    columns: Mapping[str, Any]
    demonstration: str | None
    place: str


def read_questions(table: Table, columns: Mapping[str, str], *, skip_bad_rows: bool, left: Left) -> Iterator[Question]:
    """The rows of a table as questions: each has a column of messages, or one with a prompt.

    An answer that stands behind them, as the last message or in a column of responses, is the demonstration.

    Args:
      columns: what the table calls `messages`, `prompt` and `response`; left: counts the rows that are passed over.

    Raises:
      UserError: a row that is neither, with its place, unless `skip_bad_rows`.
    """
    for row in table:
        try:
            yield _question(row, columns)
        except UserError:
            if not skip_bad_rows:
                raise
            left.broken += 1


def _question(row: Row, columns: Mapping[str, str]) -> Question:
    messages, prompt, response = (columns[name] for name in ("messages", "prompt", "response"))
    demonstration = None
    if messages in row.fields:
        asked: Prompt = read_messages(row, messages)
    elif prompt in row.fields:
        is_list = isinstance(row.fields[prompt], list)
        asked = read_messages(row, prompt) if is_list else text_of(row.fields[prompt], f"{row.place}: {prompt}")
        if response in row.fields:
            demonstration = text_of(row.fields[response], f"{row.place}: {response}")
    else:
        raise UserError(
            f"{row.place}: there is no column {messages!r} nor {prompt!r}. There are: {', '.join(row.fields)}. Say "
            "what yours are called: data.columns.messages or data.columns.prompt."
        )
    if not isinstance(asked, str) and asked[-1]["role"] == "assistant":
        asked, demonstration = asked[:-1], asked[-1]["content"]
    if not asked or isinstance(asked, str) and not asked.strip():
        raise UserError(f"{row.place}: an empty prompt, and nothing to answer. {SKIP}")
    rest = {name: value for name, value in row.fields.items() if name not in (messages, prompt)}
    return Question(asked, rest, demonstration, row.place)


def questions_of_text(source: Source, tokenizer: Tokenizer, *, tokens: int, every: int) -> Iterator[Question]:
    """The first `tokens` tokens of every stretch of `every` tokens of a text, to be continued."""
    for number, piece in enumerate(source.pieces("train")):
        ids = tokenizer.encode(piece.text)
        for start in range(0, len(ids) - every + 1, every):
            place = f"{source.address}, piece {number + 1}, token {start:,}"
            if (text := tokenizer.decode(ids[start : start + tokens])).strip():
                yield Question(text, {}, None, place)


def chosen_questions(questions: list[Question], most: int, seed: int) -> list[Question]:
    """`most` of them, in order, chosen by `seed`; 0: all."""
    if not 0 < most < len(questions):
        return questions
    places = np.random.default_rng(seed).choice(len(questions), most, replace=False)
    return [questions[place] for place in sorted(places)]
