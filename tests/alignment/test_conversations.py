"""Conversations from tables: what is read, what counts, and what is refused with its place."""

import json

import numpy as np
import pytest
from small_models import byte_tokenizer

from gpt_jax.alignment.conversations import Left, answer_tokens, demonstrations, read_conversations
from gpt_jax.data.tables import open_table
from gpt_jax.errors import UserError
from gpt_jax.text.chat_template import ChatTemplate, plain_template

COLUMNS = {"messages": "messages", "prompt": "prompt", "response": "response"}
TURNS = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]


@pytest.fixture(scope="module")
def template():
    pytest.importorskip("jinja2", reason="the extra 'serve' is not installed")
    tokenizer = byte_tokenizer()
    return ChatTemplate(plain_template(tokenizer), tokenizer)


def read(tmp_path, *rows, columns=COLUMNS, skip=False):
    path = tmp_path / "talk.jsonl"
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    left = Left()
    table = open_table(f"file:{path}", skip_bad_rows=skip)
    return list(read_conversations(table, columns, skip_bad_rows=skip, left=left)), left


def test_messages_and_prompts_with_responses_are_conversations(tmp_path):
    (one, other), _ = read(tmp_path, {"messages": TURNS}, {"prompt": "a?", "response": "b"})
    assert one.messages == other.messages == tuple(TURNS)
    assert one.text == other.text and one.place.endswith("talk.jsonl, line 1")


def test_columns_have_the_names_that_one_gives_them(tmp_path):
    columns = {"messages": "turns", "prompt": "question", "response": "answer"}
    (one, other), _ = read(tmp_path, {"turns": TURNS}, {"question": "a?", "answer": "b", "id": 3}, columns=columns)
    assert one.messages == other.messages == tuple(TURNS)


BAD_ROWS = {
    "no column 'messages', nor 'prompt' with 'response'. There are: text": {"text": "a"},
    "Expected a list of messages": {"messages": "a?"},
    "messages is '\\[\\]'": {"messages": []},
    "message 2 is 'b'. Expected an object": {"messages": [TURNS[0], "b"]},
    "message 1 is .*'from': 'human'.* Expected an object": {"messages": [{"from": "human", "value": "a"}]},
    "message 2 has no text but 'None'": {"messages": [TURNS[0], {"role": "assistant"}]},
    "without a message of the role 'assistant'": {"messages": TURNS[:1]},
    "response has no text but '7'": {"prompt": "a", "response": 7},
}


@pytest.mark.parametrize("message", BAD_ROWS)
def test_what_is_no_conversation_is_named_with_its_place_or_left_out_and_counted(message, tmp_path):
    with pytest.raises(UserError, match=f"talk.jsonl, line 2: .*{message}|talk.jsonl, line 2: {message}"):
        read(tmp_path, {"messages": TURNS}, BAD_ROWS[message])
    found, left = read(tmp_path, {"messages": TURNS}, BAD_ROWS[message], skip=True)
    assert len(found) == 1 and left == Left(broken=1)


def test_the_loss_falls_on_the_answers_and_their_ends(tmp_path, template):
    found, left = read(tmp_path, {"messages": [*TURNS, *TURNS]})
    [text] = demonstrations(found, template, 100, skip_bad_rows=False, left=left)
    end = template.end_ids[0]
    assert [int(id) for id in text.ids[text.counted]] == [ord("b"), end] * 2 or answer_tokens([text]) == 4
    assert np.flatnonzero(text.counted)[-1] == len(text.ids) - 1  # nothing behind the last answer is read


def test_conversations_that_do_not_fit_are_counted_and_refused_or_left_out(tmp_path, template):
    long = {"prompt": "a" * 50, "response": "b"}
    found, left = read(tmp_path, {"messages": TURNS}, long, long)
    with pytest.raises(UserError, match=r"line 2: a conversation of \d+ tokens, .*sequence_length=40.* 2 of 3 conv"):
        demonstrations(found, template, 40, skip_bad_rows=False, left=left)
    left = Left()
    assert len(demonstrations(found, template, 40, skip_bad_rows=True, left=left)) == 1 and left == Left(too_long=2)


def test_messages_that_the_template_refuses_are_named_with_their_place(tmp_path):
    tokenizer = byte_tokenizer()
    strict = ChatTemplate("{{ raise_exception('two users in a row') }}", tokenizer)
    found, left = read(tmp_path, {"messages": TURNS})
    with pytest.raises(UserError, match=r"talk.jsonl, line 1: .*two users in a row"):
        demonstrations(found, strict, 40, skip_bad_rows=False, left=left)
