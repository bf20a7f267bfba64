"""Heuristics that need no fine-tuning: examples as texts to score, and the answers that scores give."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from words import SPECIALS, Words

from gpt_jax.data.rows import Row
from gpt_jax.data.tables import open_table
from gpt_jax.errors import UserError
from gpt_jax.tasks.examples import Classification, Example, MultipleChoice, Substitution
from gpt_jax.tasks.metrics import compute_metrics
from gpt_jax.tasks.prompts import Candidate, above, best_threshold, encode_prompts, heuristic_of, likeliest
from gpt_jax.tasks.reading import read_examples
from gpt_jax.tasks.registry import TASKS, ZERO_SHOT_TASKS, find_task

SHARED = Path(__file__).resolve().parents[3] / "shared/data"
WINOGRAD = ZERO_SHOT_TASKS["winograd"]


class Letters:
    """A letter an id, but "ab" is one token, whatever stands around it: as vocabularies merge across a boundary."""

    kind, vocab_size, specials = "letters", 1000, SPECIALS

    def encode_batch(self, texts):
        return [np.array([ord(letter) for letter in text.replace("ab", "ß")], np.int32) for text in texts]


def example(inputs, target=0):
    return Example(inputs, target, "7", "rows.jsonl, line 8")


def candidates(task, inputs):
    return heuristic_of(task).candidates(inputs)


def asked(task, *inputs, tokenizer=None, context_length=64):
    return encode_prompts([example(one) for one in inputs], heuristic_of(task), tokenizer or Letters(), context_length)


def test_a_sentence_is_scored_as_it_stands():
    assert candidates(TASKS["cola"], Classification("He slept.")) == (Candidate("", "He slept."),)


def test_very_is_appended_and_two_words_are_compared_in_the_order_of_the_labels():
    assert TASKS["sst2"].labels == ("negative", "positive")
    assert candidates(TASKS["sst2"], Classification("a film .")) == (
        Candidate("a film . very", " negative"),
        Candidate("a film . very", " positive"),
    )


@pytest.mark.parametrize("task", ["race", "story_cloze", "books-choice"])
def test_every_answer_follows_context_and_question(task):
    inputs = MultipleChoice("A fox.", ("cat", '"Fox"'), "Who?")
    assert candidates(TASKS[task], inputs) == (Candidate("A fox. Who?", " cat"), Candidate("A fox. Who?", ' "Fox"'))
    assert candidates(TASKS[task], MultipleChoice("A fox.", ("ran", "sat")))[0] == Candidate("A fox.", " ran")


def test_the_rest_of_a_sentence_follows_each_candidate_for_the_pronoun():
    inputs = Substitution(("It is the cup", "It is the bag"), "broke.")
    assert candidates(WINOGRAD, inputs) == (
        Candidate("It is the cup", " broke."),
        Candidate("It is the bag", " broke."),
    )
    assert candidates(WINOGRAD, Substitution(("a", "b"), "."))[0] == Candidate("a", ".")  # no space before a full stop


@pytest.mark.parametrize("task", ["mnli", "mrpc", "books-author"])
def test_a_task_without_a_heuristic_is_named(task):
    with pytest.raises(UserError, match=f"{task}: no heuristic"):
        heuristic_of(TASKS[task])


def test_every_text_follows_the_symbol_before_texts_and_all_of_a_sentence_is_scored():
    prompts = asked(TASKS["cola"], Classification("xyz"))
    assert prompts.sequences[0].tolist() == [SPECIALS.end_of_text, *map(ord, "xyz")]
    assert prompts.starts.tolist() == [1] and prompts.scored_tokens.tolist() == [3]


def test_a_beginning_of_text_is_preferred_to_the_end_of_text():
    import dataclasses

    tokenizer = Words(dataclasses.replace(SPECIALS, beginning_of_text=9))
    assert asked(TASKS["cola"], Classification("a b"), tokenizer=tokenizer).sequences[0].tolist() == [9, 100, 101]


def test_only_the_continuation_is_scored_and_candidates_differ_only_there():
    prompts = asked(TASKS["race"], MultipleChoice("ctx", ("one", "three"), "q?"))
    assert prompts.candidates.tolist() == [2]
    first, second = prompts.sequences
    start = 1 + len("ctx q?")
    assert prompts.starts.tolist() == [start, start]
    np.testing.assert_array_equal(first[:start], second[:start])
    assert prompts.scored_tokens.tolist() == [len(" one"), len(" three")]


def test_a_token_that_spells_characters_of_both_sides_is_scored_for_every_candidate():
    class Joined(Letters):
        def encode_batch(self, texts):
            return super().encode_batch([text.replace("a b", "ab") for text in texts])

    prompts = asked(TASKS["race"], MultipleChoice("xa", ("b", "c")), tokenizer=Joined())
    assert prompts.starts.tolist() == [2, 2]  # of "xa b" the tokens are x and "a b"
    assert prompts.scored_tokens.tolist() == [1, 3]


def test_long_contexts_lose_their_first_tokens_the_same_for_every_candidate():
    inputs = MultipleChoice("0123456789", ("a", "bcdef"))
    prompts = asked(TASKS["race"], inputs, context_length=12)
    texts = ["".join(map(chr, sequence)) for sequence in prompts.sequences]
    assert texts == ["456789 a", "456789 bcdef"] and prompts.starts.tolist() == [6, 6]
    assert prompts.truncated == 1
    assert asked(TASKS["race"], inputs, context_length=17).truncated == 0
    assert asked(TASKS["race"], inputs, context_length=16).truncated == 1


@settings(deadline=None)
@given(
    context=st.text("xyz", min_size=1, max_size=30),
    answers=st.lists(st.text("xyz", min_size=1, max_size=30), min_size=2, max_size=4),
    context_length=st.integers(4, 40),
)
def test_whatever_is_cut_something_is_scored_after_something(context, answers, context_length):
    prompts = asked(TASKS["race"], MultipleChoice(context, tuple(answers)), context_length=context_length)
    for sequence, start, answer in zip(prompts.sequences, prompts.starts, answers, strict=True):
        assert 1 <= start < len(sequence) <= context_length
        assert "".join(map(chr, sequence[start:])) == f" {answer}"[-(len(sequence) - start) :]
        assert len(sequence) - start == min(1 + len(answer), context_length - 1)


def test_a_continuation_without_a_token_is_named_with_its_place():
    with pytest.raises(UserError, match="rows.jsonl, line 8: .*no token for ' '"):
        asked(TASKS["race"], MultipleChoice("one", ("two", "")), tokenizer=Words())


def test_the_mean_decides_between_answers_of_different_lengths_and_the_sum_between_words():
    choice = asked(TASKS["race"], MultipleChoice("c", ("a", "bcd")))  # 2 and 4 tokens with their space
    scores = heuristic_of(TASKS["race"]).scores(np.array([-3.0, -4.0]), choice)
    assert [own.tolist() for own in scores] == [[-1.5, -1.0]] and likeliest(scores).tolist() == [1]
    words = asked(TASKS["sst2"], Classification("c"))
    [own] = heuristic_of(TASKS["sst2"]).scores(np.array([-3.0, -4.0]), words)
    assert own.tolist() == [-3.0, -4.0]


def test_scores_come_back_by_example_however_many_candidates_each_has():
    prompts = asked(TASKS["race"], MultipleChoice("c", ("a", "b", "d")), MultipleChoice("c", ("a", "b")))
    scores = heuristic_of(TASKS["race"]).scores(np.arange(5.0), prompts)
    assert [len(own) for own in scores] == [3, 2] and likeliest(scores).tolist() == [2, 1]


@settings(deadline=None)
@given(st.permutations(["cat", "a fox", "the old bear"]))
def test_answers_in_another_order_give_the_same_answer(order):
    likely = {" cat": -9.0, " a fox": -5.0, " the old bear": -40.0}
    inputs = MultipleChoice("c", tuple(order))
    values = np.array([likely[one.continuation] for one in candidates(TASKS["race"], inputs)])
    scores = heuristic_of(TASKS["race"]).scores(values, asked(TASKS["race"], inputs))
    assert order[likeliest(scores)[0]] == "a fox"  # -5/6 a token; the others -9/4 and -40/13


def test_what_lies_above_the_threshold_is_called_1():
    assert above([np.array([-2.0]), np.array([-1.0]), np.array([-1.5])], -1.5).tolist() == [0, 1, 0]


def test_the_threshold_that_separates_the_classes_is_found():
    scores = [np.array([value]) for value in (-5.0, -1.0, -4.0, -2.0)]
    assert best_threshold(scores, [0, 1, 0, 1]) == -3.0


def test_without_a_threshold_that_does_better_than_chance_everything_is_called_1():
    for scores in ([np.array([-1.0])] * 3, [np.array([value]) for value in (-1.0, -2.0, -3.0)]):
        assert above(scores, best_threshold(scores, [0, 1, 1])).tolist() == [1, 1, 1]


@settings(deadline=None)  # scikit-learn is imported by the first
@given(st.lists(st.tuples(st.integers(-6, 0), st.integers(0, 1)), min_size=2, max_size=25))
def test_no_threshold_has_a_better_correlation(pairs):
    scores, targets = [np.array([float(value)]) for value, _ in pairs], [target for _, target in pairs]

    def matthews(threshold):
        return compute_metrics(["matthews"], above(scores, threshold), np.array(targets))["matthews"]

    best = max(matthews(value + 0.5) for value in range(-7, 1))
    assert matthews(best_threshold(scores, targets)) == pytest.approx(best)


def read(task, **fields):
    return read_examples([Row(fields, "mine.jsonl, line 1")], task).examples[0]


def test_schemas_are_read_from_columns_of_any_name():
    found = read(WINOGRAD, context_options=["the cup", "the bag"], continuation="broke.", gold=1)
    assert found.inputs == Substitution(("the cup", "the bag"), "broke.") and found.target == 1
    columns = {"options": "one+two", "continuation": "rest", "label": "right"}
    mine = find_task("winograd", columns=columns, labels=["A", "B"], tasks=TASKS | ZERO_SHOT_TASKS)
    assert read(mine, one="the cup", two="the bag", rest="broke.", right="B") == found


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"context_options": "the cup"}, "list of options was expected"),
        ({"context_options": ["the cup"]}, "1 options. Expected 2 to 16"),
        ({"context_options": ["the cup", ""]}, "1 options"),
        ({"context_options": ["", "the bag"]}, "'option 1' is empty"),
        ({"continuation": " "}, "'continuation' is empty"),
        ({"gold": 2}, "unknown label '2'"),
        ({"gold": None}, "unknown label ''"),
    ],
)
def test_what_is_wrong_with_a_schema_is_said_with_its_place(fields, words):
    row = {"context_options": ["the cup", "the bag"], "continuation": "broke.", "gold": 1} | fields
    with pytest.raises(UserError, match="mine.jsonl, line 1") as refused:
        read(WINOGRAD, **row)
    assert words in str(refused.value)


def test_a_label_of_an_option_that_a_schema_does_not_have_is_refused():
    three = find_task("winograd", labels=["0", "1", "2"], tasks=TASKS | ZERO_SHOT_TASKS)
    row = {"context_options": ["the cup", "the bag"], "continuation": "broke."}
    assert read(three, **row, gold=1).target == 1
    with pytest.raises(UserError, match="unknown label '2'"):
        read(three, **row, gold=2)


def test_a_missing_column_is_named():
    with pytest.raises(UserError, match="no column 'continuation' for the continuation of a substitution task"):
        read(WINOGRAD, context_options=["the cup", "the bag"], gold=1)


def test_schemas_are_no_task_to_be_learnt():
    with pytest.raises(UserError, match="no such task"):
        find_task("winograd")


def test_the_shared_schemas_are_read():
    path = SHARED / "prompted/winograd/test.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    examples = read_examples(open_table(f"file:{path}"), WINOGRAD).examples
    assert len(examples) == 273 and sum(example.target for example in examples) == 136
