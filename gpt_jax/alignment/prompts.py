"""What a policy is asked: the beginnings of passages of a text, or the rows of a table."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gpt_jax.alignment.conversations import SKIP
from gpt_jax.data.rows import Row
from gpt_jax.data.tables import Table
from gpt_jax.data.token_store import TokenStore
from gpt_jax.errors import UserError
from gpt_jax.text.chat_template import ChatTemplate
from gpt_jax.text.tokenizer import Tokenizer


class Prompt(NamedTuple):
    """One prompt: its ids, the text that they spell for a reward, and its row's columns, `messages` among them."""

    ids: list[int]
    text: str
    columns: Mapping[str, Any]


class TextPrompts(Sequence[Prompt]):
    """The first `length` tokens of each of the passages of `stride` tokens that a text is made of.

    Raises:
      UserError: the text has not even one.
    """

    def __init__(self, store: TokenStore, tokenizer: Tokenizer, length: int, stride: int):
        self._store, self._tokenizer, self._length, self._stride = store, tokenizer, length, stride
        if not len(self):
            raise UserError(
                f"the text that prompts are taken from is {len(store):,} tokens, and data.prompt_tokens={length}."
            )

    def __len__(self) -> int:
        return max(len(self._store) - self._length, -self._stride) // self._stride + 1

    def __getitem__(self, index: int) -> Prompt:
        if not 0 <= index < len(self):
            raise IndexError(f"prompt {index} of {len(self)}")
        ids = self._store.read(index * self._stride, index * self._stride + self._length).tolist()
        beginning = self._tokenizer.specials.beginning_of_text
        return Prompt(ids if beginning is None else [beginning, *ids], self._tokenizer.decode(ids), {})


def read_prompts(
    table: Table,
    columns: Mapping[str, str],
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    *,
    skip_bad_rows: bool,
) -> tuple[list[Prompt], int]:
    """The rows of a table as prompts, and how many were passed over because they are none.

    A conversation is asked up to where its last answer begins. A prompt is a user's message where there is a template,
    else a text to go on from.

    Args:
      columns: what the table calls `messages` and `prompt`.
      template: of a model that chats; None: it does not.

    Raises:
      UserError: a row that is no prompt, with its place, unless `skip_bad_rows`.
    """
    prompts, bad = [], 0
    for row in table:
        try:
            prompts.append(_prompt(row, columns, tokenizer, template))
        except UserError:
            if not skip_bad_rows:
                raise
            bad += 1
    return prompts, bad + table.skipped


def _prompt(row: Row, columns: Mapping[str, str], tokenizer: Tokenizer, template: ChatTemplate | None) -> Prompt:
    messages, prompt = (row.fields.get(columns[role]) for role in ("messages", "prompt"))
    if isinstance(prompt, str) and prompt and messages is None:
        if template is None:
            beginning = tokenizer.specials.beginning_of_text
            ids = tokenizer.encode(prompt).tolist()
            return Prompt(ids if beginning is None else [beginning, *ids], prompt, row.fields)
        messages = [{"role": "user", "content": prompt}]
    if not _is_conversation(messages):
        raise UserError(
            f"{row.place}: expected a column {columns['messages']!r}, a list of messages "
            f'{{"role": ..., "content": text}}, or {columns["prompt"]!r}, a text that is not empty. There are: '
            f"{', '.join(row.fields)}. Say what yours are called: data.columns.messages, data.columns.prompt. {SKIP}"
        )
    if template is None:
        raise UserError(
            f"{row.place}: messages, and the model has no chat template. Name one, --config.template=FILE, or begin "
            "with a model that chats (configs/sft.py makes one)."
        )
    asked = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    if not asked:
        raise UserError(f"{row.place}: a conversation of nothing but an answer. {SKIP}")
    try:
        ids, text = template.encode(asked).tolist(), template.render(asked)
    except UserError as error:
        raise UserError(f"{row.place}: {error}") from None
    return Prompt(ids, text, {**row.fields, "messages": asked})


def _is_conversation(messages: Any) -> bool:
    return (
        isinstance(messages, list)
        and bool(messages)
        and all(
            isinstance(one, dict) and isinstance(one.get("role"), str) and isinstance(one.get("content"), str)
            for one in messages
        )
    )


def columns_of(prompts: Sequence[Prompt]) -> dict[str, list[Any]]:
    """The columns of their rows, each with a value a prompt; None where a row has none."""
    names = dict.fromkeys(name for prompt in prompts for name in prompt.columns)
    return {name: [prompt.columns.get(name) for prompt in prompts] for name in names}


def evenly(prompts: Sequence[Prompt], number: int) -> list[Prompt]:
    """At most `number` of them, from everywhere."""
    places = np.linspace(0, len(prompts) - 1, min(number, len(prompts)), dtype=int)
    return [prompts[int(place)] for place in places]
