"""Generated tasks are what the GPT-3 paper describes."""

import re

import pytest

from gpt_jax.errors import UserError
from gpt_jax.tasks.generated import GENERATED, generated_rows

WORDS = [f"{a}{b}{c}ing" for a in "bcdfg" for b in "aeiou" for c in "lmnr"] + ["of", "antidisestablishment", "don't"]
OPERATIONS = {"plus": "+", "minus": "-", "times": "*"}


@pytest.mark.parametrize("task", [name for name in GENERATED if name.startswith("arithmetic")])
def test_sums_are_right_and_of_the_digits_asked_for(task):
    rows = generated_rows(task, (), 0, "test")
    assert len(rows) == 2000
    numbers = []
    for row in rows:
        expression = row["question"].removeprefix("What is ").removesuffix("?")
        for word, sign in OPERATIONS.items():
            expression = expression.replace(f" {word} ", sign)
        found = list(map(int, re.findall(r"\d+", expression)))
        numbers += found
        assert int(row["answer"]) == eval(expression)
        assert len(found) == (3 if task.endswith("1dc") else 2)
    digits = int(task.removeprefix("arithmetic-")[0])
    assert 0 <= min(numbers) and max(numbers) < 10**digits and max(numbers) > 0.9 * 10**digits - 1
    assert generated_rows(task, (), 0, "test") == rows != generated_rows(task, (), 1, "test")


@pytest.mark.parametrize("task", [name for name in GENERATED if name.startswith("words")])
def test_scrambled_words_keep_their_letters(task):
    rows = generated_rows(task, WORDS, 0, "test")
    train = generated_rows(task, WORDS, 0, "train")
    words = {row["word"] for row in rows}
    assert words and not words & {row["word"] for row in train}
    assert all(5 <= len(word) <= 14 for word in words)
    for row in rows:
        word, scrambled = row["word"], row["scrambled"]
        if task == "words-inserted":
            assert scrambled[::2] == word and not any(sign.isalpha() for sign in scrambled[1::2])
            continue
        assert sorted(word) == sorted(scrambled)
        kept = {"words-anagram1": 1, "words-anagram2": 2}.get(task, 0)
        assert word[:kept] == scrambled[:kept] and word[len(word) - kept :] == scrambled[len(word) - kept :]
        if task == "words-reversed":
            assert scrambled == word[::-1]
        if task == "words-cycled":
            assert scrambled in (word + word)


def test_a_text_without_words_is_one_message():
    with pytest.raises(UserError, match="data.words"):
        generated_rows("words-cycled", ["a", "of"], 0, "test")
