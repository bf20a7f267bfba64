"""Ranked answers from tables: what is read, how it becomes tokens, and what is refused with its place."""

import json

import numpy as np
import pytest
from small_models import byte_tokenizer

from gpt_jax.alignment.conversations import Left
from gpt_jax.alignment.ranked_answers import COLUMNS, AnswerEncoder, encode_ranked, read_ranked_answers
from gpt_jax.data.tables import open_table
from gpt_jax.errors import UserError
from gpt_jax.text.chat_template import ChatTemplate, plain_template

NAMES = {name: name for name in COLUMNS}
ASKED = {"role": "user", "content": "a?"}
SAID = [{"role": "assistant", "content": text} for text in ("good", "bad")]
TRANSCRIPT = "\n\nHuman: a?\n\nAssistant: b\n\nHuman: sure?\n\nAssistant:"


def read(tmp_path, *rows, as_text=False, skip=False):
    path = tmp_path / "ranked.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    left = Left()
    table = open_table(f"file:{path}", skip_bad_rows=skip)
    return list(read_ranked_answers(table, NAMES, as_text=as_text, skip_bad_rows=skip, left=left)), left


def test_every_form_is_the_same_comparison(tmp_path):
    forms = [
        {"prompt": "a?", "answers": ["good", "bad"]},
        {"prompt": [ASKED], "answers": ["bad", "good"], "ranks": [2.5, 1], "model": "x"},
        {"prompt": "a?", "chosen": "good", "rejected": "bad"},
        {"chosen": [ASKED, SAID[0]], "rejected": [ASKED, SAID[1]]},
        {"prompt": [ASKED], "chosen": SAID[:1], "rejected": SAID[1:]},
        {"prompt": "a?", "chosen": [ASKED, SAID[0]], "rejected": [ASKED, SAID[1]]},
        {"chosen": "\n\nHuman: a?\n\nAssistant: good", "rejected": "\n\nHuman: a?\n\nAssistant: bad"},
    ]
    for row in read(tmp_path, *forms)[0]:
        pair = row.best_and_worst()
        assert (pair.prompt, pair.answers, pair.ranks) == ((ASKED,), ("good", "bad"), (0, 1)), row.place


def test_a_transcript_is_taken_apart_or_stays_a_text(tmp_path):
    row = {"chosen": f"{TRANSCRIPT} yes", "rejected": f"{TRANSCRIPT} no"}
    [[chat], _], [[text], _] = read(tmp_path, row), read(tmp_path, row, as_text=True)
    assert [message["content"] for message in chat.prompt] == ["a?", "b", "sure?"] and chat.answers == ("yes", "no")
    assert text.prompt == TRANSCRIPT and text.answers == (" yes", " no")


def test_references_are_the_demonstration_or_the_best(tmp_path):
    ranked = {"prompt": "a", "answers": ["x", "y", "z"], "ranks": [2, 1, 1]}
    (one, other), _ = read(tmp_path, ranked, ranked | {"reference": 0})
    assert one.references == (1, 2) and other.references == (0,)
    pair = other.best_and_worst()
    assert pair.answers == ("y", "x") and pair.reference == 1


BAD_ROWS = {
    "no column 'prompt' with 'answers', nor 'chosen' with 'rejected'. There are: text": {"text": "a"},
    "answers 1 and 3 are the same text": {"prompt": "a", "answers": ["x", "y", "x"]},
    "1 answers, and it takes two": {"prompt": "a", "answers": ["x"]},
    "0 answers, and it takes two": {"prompt": "a", "answers": []},
    "answer 2 is empty": {"prompt": "a", "answers": ["x", " "]},
    "Expected 2 numbers, one for each": {"prompt": "a", "answers": ["x", "y"], "ranks": [1, 2, 3]},
    "ranks is '\\[1, None\\]'": {"prompt": "a", "answers": ["x", "y"], "ranks": [1, None]},
    "ranks is '\\[1000": {"prompt": "a", "answers": ["x", "y"], "ranks": [10**400, 1]},
    "valid Unicode": {"prompt": "a\ud800", "answers": ["x", "y"]},
    "all answers have the rank 1": {"prompt": "a", "answers": ["x", "y"], "ranks": [1, 1]},
    "the number of an answer, 0 to 1": {"prompt": "a", "answers": ["x", "y"], "reference": 2},
    "Expected a list of texts": {"prompt": "a", "answers": "x"},
    "answer 2 has no text but '7'": {"prompt": "a", "answers": ["x", 7]},
    "the same messages up to the last": {"chosen": [ASKED, SAID[0]], "rejected": [SAID[1]]},
    "no transcripts that begin": {"chosen": "x", "rejected": "y"},
    "transcripts that differ before the answer": {
        "chosen": "\n\nHuman: a?\n\nAssistant: x", "rejected": "\n\nHuman: b?\n\nAssistant: y"
    },
}  # fmt: skip


@pytest.mark.parametrize("message", BAD_ROWS)
def test_what_is_no_comparison_is_named_with_its_place_or_left_out_and_counted(message, tmp_path):
    good = {"prompt": "a", "answers": ["x", "y"]}
    with pytest.raises(UserError, match=f"ranked.jsonl, line 2: .*{message}|ranked.jsonl, line 2: {message}"):
        read(tmp_path, good, BAD_ROWS[message])
    found, left = read(tmp_path, good, BAD_ROWS[message], skip=True)
    assert len(found) == 1 and left == Left(broken=1)


def test_messages_are_no_text(tmp_path):
    with pytest.raises(UserError, match="line 1: messages, and with template=none prompts are texts"):
        read(tmp_path, {"prompt": [ASKED], "answers": ["x", "y"]}, as_text=True)


@pytest.fixture(scope="module")
def encoders():
    pytest.importorskip("jinja2", reason="the extra 'serve' is not installed")
    tokenizer = byte_tokenizer()
    return AnswerEncoder(tokenizer, ChatTemplate(plain_template(tokenizer), tokenizer)), AnswerEncoder(tokenizer, None)


def test_the_last_answer_and_its_end_count_by_a_template_or_as_one_text(encoders):
    chat, text = encoders
    asked = (ASKED, SAID[0], ASKED)
    for encode, prompt in ((chat, asked), (text, "what is")):
        found = encode(prompt, " so")
        assert bytes(found.ids[found.counted][:-1].tolist()) == b" so" and found.ids[-1] == 256
        np.testing.assert_array_equal(found.ids[~found.counted], encode.prompt(prompt))


def test_of_a_conversation_the_last_messages_are_read_and_what_the_system_says(encoders):
    template = encoders[0]._template
    system, asked = {"role": "system", "content": "be kind"}, (ASKED, SAID[0], ASKED)
    encode = AnswerEncoder(byte_tokenizer(), template, last_messages=1)
    np.testing.assert_array_equal(encode((system, *asked), "b").ids, encoders[0]((system, ASKED), "b").ids)
    np.testing.assert_array_equal(encode.prompt(asked), encoders[0].prompt((ASKED,)))


def test_prompts_with_an_answer_that_does_not_fit_are_counted_and_refused_or_left_out(encoders, tmp_path):
    _, text = encoders
    rows, left = read(tmp_path, *({"prompt": "a", "answers": ["x", "y" * size]} for size in (3, 9)), as_text=True)
    with pytest.raises(UserError, match=r"line 2: .* of 11 tokens, and data.sequence_length=10.* 1 of 2 prompts"):
        encode_ranked(rows, text, 10, skip_bad_rows=False, left=left)
    left = Left()
    kept, tokens = encode_ranked(rows, text, 10, skip_bad_rows=True, left=left)
    assert kept == rows[:1] and [len(one.ids) for one in tokens[0]] == [3, 5] and left == Left(too_long=1)


def test_answers_that_are_the_same_tokens_are_no_comparison(encoders, tmp_path):
    tokenizer = byte_tokenizer()
    trims = plain_template(tokenizer).replace("message['content']", "message['content'] | trim")
    encode = AnswerEncoder(tokenizer, ChatTemplate(trims, tokenizer))
    rows, left = read(tmp_path, {"prompt": "a", "answers": ["x", "y"]}, {"prompt": "a", "answers": ["yes", " yes"]})
    with pytest.raises(UserError, match="line 2: two of the answers are the same tokens"):
        encode_ranked(rows, encode, 100, skip_bad_rows=False, left=left)
    kept, _ = encode_ranked(rows, encode, 100, skip_bad_rows=True, left=left)
    assert kept == rows[:1] and left == Left(broken=1)
