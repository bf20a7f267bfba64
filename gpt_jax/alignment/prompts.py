"""What a policy is asked: the beginnings of passages of a text, or the rows of a table."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gpt_jax.alignment.conversations import Left
from gpt_jax.alignment.questions import Question, read_questions
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
      columns: as of `read_questions`.
      template: of a model that chats; None: it does not.

    Raises:
      UserError: a row that is no prompt, with its place, unless `skip_bad_rows`; messages, and there is no template.
    """
    left, prompts = Left(), []
    for question in read_questions(table, columns, skip_bad_rows=skip_bad_rows, left=left):
        if not isinstance(question.prompt, str) and template is None:
            raise UserError(
                f"{question.place}: messages, and the model has no chat template. Name one, --config.template=FILE, or "
                "begin with a model that chats (configs/sft.py makes one)."
            )
        try:
            prompts.append(encoded(question, tokenizer, template))
        except UserError as error:
            if not skip_bad_rows:
                raise UserError(f"{question.place}: {error}") from None
            left.broken += 1
    return prompts, left.broken + table.skipped


def encoded(question: Question, tokenizer: Tokenizer, template: ChatTemplate | None) -> Prompt:
    """A question as a policy reads it; UserError: the template does not take it."""
    if template is None:
        return Prompt(text_ids(question.prompt, tokenizer), question.prompt, question.columns)
    user = [{"role": "user", "content": question.prompt}]
    asked = user if isinstance(question.prompt, str) else list(question.prompt)
    return Prompt(template.encode(asked).tolist(), template.render(asked), {**question.columns, "messages": asked})


def text_ids(text: str, tokenizer: Tokenizer) -> list[int]:
    """Ids of a text that goes on, behind the symbol of a text's beginning where there is one."""
    beginning = tokenizer.specials.beginning_of_text
    ids = tokenizer.encode(text).tolist()
    return ids if beginning is None else [beginning, *ids]


def columns_of(prompts: Sequence[Prompt]) -> dict[str, list[Any]]:
    """The columns of their rows, each with a value a prompt; None where a row has none."""
    names = dict.fromkeys(name for prompt in prompts for name in prompt.columns)
    return {name: [prompt.columns.get(name) for prompt in prompts] for name in names}


def evenly(prompts: Sequence[Prompt], number: int) -> list[Prompt]:
    """At most `number` of them, from everywhere."""
    places = np.linspace(0, len(prompts) - 1, min(number, len(prompts)), dtype=int)
    return [prompts[int(place)] for place in places]
