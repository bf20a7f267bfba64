"""Prompts for a policy: read from every form of a row, with what else stands there."""

import json

import pytest

from gpt_jax.alignment.conversations import Left
from gpt_jax.alignment.questions import chosen_questions, read_questions
from gpt_jax.data.tables import open_table
from gpt_jax.errors import UserError

COLUMNS = {"messages": "messages", "prompt": "prompt", "response": "response"}
ASKED = {"role": "user", "content": "a?"}
ANSWERED = {"role": "assistant", "content": "b"}


def read(folder, *rows, skip=False, left=None):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    left = Left() if left is None else left
    return list(read_questions(open_table(f"file:{path}"), COLUMNS, skip_bad_rows=skip, left=left))


@pytest.mark.parametrize(
    ("row", "prompt", "demonstration"),
    [
        ({"prompt": "a?"}, "a?", None),
        ({"prompt": "a?", "response": "b"}, "a?", "b"),
        ({"prompt": [ASKED], "response": "b"}, (ASKED,), "b"),
        ({"messages": [ASKED]}, (ASKED,), None),
        ({"messages": [ASKED, ANSWERED]}, (ASKED,), "b"),
        ({"messages": [ASKED, ANSWERED, ASKED]}, (ASKED, ANSWERED, ASKED), None),
    ],
)
def test_a_row_is_a_prompt_and_perhaps_its_demonstration(row, prompt, demonstration, tmp_path):
    [found] = read(tmp_path, row | {"answer": 42})
    assert (found.prompt, found.demonstration, found.columns["answer"]) == (prompt, demonstration, 42)
    assert found.place.endswith("rows.jsonl, line 1") and not {"prompt", "messages"} & set(found.columns)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"text": "a?"}, "no column 'messages' nor 'prompt'. There are: text"),
        ({"prompt": " "}, "an empty prompt"),
        ({"prompt": 7}, "prompt has no text but '7'"),
        ({"messages": [ANSWERED]}, "an empty prompt"),
        ({"messages": ["a?"]}, "message 1 is 'a\\?'"),
    ],
)
def test_what_is_no_prompt_is_named_with_its_place_or_left_out_and_counted(row, words, tmp_path):
    with pytest.raises(UserError, match=f"line 2: .*{words}"):
        read(tmp_path, {"prompt": "a?"}, row)
    left = Left()
    assert len(read(tmp_path, {"prompt": "a?"}, row, skip=True, left=left)) == 1 and left == Left(broken=1)


def test_a_seed_chooses_some_in_their_order():
    numbers = list(range(50))
    some = chosen_questions(numbers, 10, seed=1)
    assert some == sorted(some) == chosen_questions(numbers, 10, seed=1) != chosen_questions(numbers, 10, seed=2)
    assert chosen_questions(numbers, 0, 1) == chosen_questions(numbers, 50, 1) == numbers
