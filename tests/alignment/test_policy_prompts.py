"""What a policy is asked: passages of a text, rows of a table, conversations."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_models import byte_tokenizer

from gpt_jax.alignment.prompts import Prompt, TextPrompts, columns_of, evenly, read_prompts
from gpt_jax.data.tables import open_table
from gpt_jax.errors import UserError
from gpt_jax.text.chat_template import ChatTemplate, plain_template

COLUMNS = {"messages": "messages", "prompt": "prompt", "response": "response"}


class Store:
    """Tokens 0, 1, 2, ..."""

    def __init__(self, count: int):
        self._count = count

    def __len__(self) -> int:
        return self._count

    def read(self, start: int, stop: int) -> np.ndarray:
        assert 0 <= start < stop <= self._count
        return np.arange(start, stop)


LISTS = SimpleNamespace(decode=str, specials=SimpleNamespace(beginning_of_text=None))


@given(count=st.integers(1, 60), length=st.integers(1, 9), answer=st.integers(1, 9))
def test_passages_begin_one_behind_the_other_and_each_prompt_is_whole(count, length, answer):
    stride = length + answer
    if count < length:
        with pytest.raises(UserError, match="data.prompt_tokens"):
            TextPrompts(Store(count), LISTS, length, stride)
        return
    prompts = TextPrompts(Store(count), LISTS, length, stride)
    assert [prompt.ids[0] for prompt in prompts] == list(range(0, count - length + 1, stride))
    assert all(len(prompt.ids) == length for prompt in prompts)


def table(folder: Path, *rows: dict):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return open_table(f"file:{path}")


def said(*turns: str) -> list[dict]:
    return [{"role": ("user", "assistant")[place % 2], "content": turn} for place, turn in enumerate(turns)]


def test_a_prompt_is_a_message_where_there_is_a_template_and_else_a_text(tmp_path):
    tokenizer = byte_tokenizer()
    rows = table(tmp_path, {"prompt": "1+1=", "answer": "2"})
    (text,), _ = read_prompts(rows, COLUMNS, tokenizer, None, skip_bad_rows=False)
    assert text == Prompt(list(b"1+1="), "1+1=", {"answer": "2"})
    template = ChatTemplate(plain_template(tokenizer), tokenizer)
    (asked,), _ = read_prompts(rows, COLUMNS, tokenizer, template, skip_bad_rows=False)
    assert asked.text == "User:\n1+1=\n\nAssistant:\n" == tokenizer.decode(asked.ids)
    assert asked.columns["messages"] == said("1+1=") and asked.columns["answer"] == "2"


def test_a_conversation_is_asked_up_to_its_last_answer(tmp_path):
    tokenizer = byte_tokenizer()
    template = ChatTemplate(plain_template(tokenizer), tokenizer)
    rows = table(tmp_path, {"messages": said("a", "b", "c", "d")}, {"messages": said("a", "b", "c")})
    (first, second), _ = read_prompts(rows, COLUMNS, tokenizer, template, skip_bad_rows=False)
    assert first == second and first.columns["messages"] == said("a", "b", "c")


@pytest.mark.parametrize("row", ({"prompt": ""}, {"messages": []}, {"messages": [{"role": "user"}]}, {"text": "x"}))
def test_what_is_no_prompt_is_named_or_counted(tmp_path, row):
    tokenizer = byte_tokenizer()
    rows = table(tmp_path, {"prompt": "a"}, row)
    with pytest.raises(UserError, match="line 2: "):
        read_prompts(rows, COLUMNS, tokenizer, None, skip_bad_rows=False)
    found, bad = read_prompts(rows, COLUMNS, tokenizer, None, skip_bad_rows=True)
    assert len(found) == bad == 1


def test_columns_have_a_value_for_every_prompt_and_evaluation_takes_from_everywhere():
    prompts = [Prompt([i], "", {"a": i} if i % 2 else {"b": i}) for i in range(5)]
    assert columns_of(prompts) == {"b": [0, None, 2, None, 4], "a": [None, 1, None, 3, None]}
    assert [prompt.ids[0] for prompt in evenly(prompts, 3)] == [0, 2, 4] and evenly(prompts, 9) == prompts
