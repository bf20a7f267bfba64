"""Free-form answers are compared as SQuAD compares them; means come with their standard errors."""

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_jax.errors import UserError
from gpt_jax.tasks.answers import exact_match, mean_of, require_packages, score_choices, score_texts, word_f1
from gpt_jax.tasks.prompting import PromptedExample
from gpt_jax.tasks.templates import prompted_tasks


def example(answers=(), gold=(0,), group="", choices=2):
    return PromptedExample(("c",) * choices, ("x",) * choices, gold, tuple(answers), "", "0", "", group)


@pytest.mark.parametrize(
    ("prediction", "answer", "exact", "f1"),
    [
        ("The  Eiffel Tower!", "eiffel tower", 1, 1),
        ("an apple", "apple pie", 0, 2 / 3),
        ("", "x", 0, 0),
        ("the", "a", 1, 1),
        ("red red car", "red car", 0, 4 / 5),
    ],
)
def test_answers_are_normalised_before_they_are_compared(prediction, answer, exact, f1):
    assert exact_match(prediction, answer) == exact
    assert word_f1(prediction, answer) == pytest.approx(f1)


@given(st.text(), st.text())
def test_f1_is_symmetric_and_one_for_the_same_text(first, second):
    assert word_f1(first, first) == 1
    assert 0 <= word_f1(first, second) == word_f1(second, first) <= 1


def test_an_exact_comparison_sees_signs_and_case_but_no_space_around():
    assert exact_match("12", "-12") == 1  # as SQuAD compares
    assert exact_match("12", "-12", "exact") == 0 and exact_match(" -12\n", "-12", "exact") == 1
    scores, _ = score_texts(("exact_match", "f1"), [example(["-12"])], ["12"], "exact")
    assert scores["exact_match"] == scores["f1"] == 0
    for name, task in prompted_tasks().items():
        generated = name.startswith(("arithmetic-", "words-"))
        assert {layout.comparison for layout in task.layouts} == {"exact" if generated else "normalised"}


def test_a_metric_whose_package_is_missing_is_one_message(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    require_packages(("exact_match", "f1"))
    with pytest.raises(UserError, match="lm-eval"):
        require_packages(("f1", "bleu"))


def test_of_several_answers_the_best_counts():
    scores, own = score_texts(
        ("f1", "exact_match"), [example(["cat", "black cat"]), example(["dog"])], ["black cat", "x"]
    )
    assert scores["f1"] == 0.5 and scores["exact_match"] == 0.5 and own.tolist() == [1, 0]


def test_the_standard_error_is_the_sample_mean_s():
    values = np.array([1.0, 0, 0, 1, 1])
    found = mean_of("accuracy", values)
    assert found["accuracy"] == 0.6
    assert found["accuracy_stderr"] == pytest.approx(np.sqrt(0.6 * 0.4 / 4))  # as lm_eval has it
    assert mean_of("accuracy", values[:1])["accuracy_stderr"] is None


def test_a_group_is_right_if_all_of_it_is():
    examples = [example(group=group, gold=(1,)) for group in "aabbc"]
    scores = score_choices(("group_exact_match", "binary_f1"), examples, np.array([1, 1, 0, 1, 0]))
    assert scores["group_exact_match"] == pytest.approx(1 / 3)
    assert scores["binary_f1"] == pytest.approx(2 * 3 / (3 + 5))


def test_any_of_several_right_choices_is_right():
    assert score_choices(("accuracy",), [example(gold=(0, 2), choices=3)], np.array([2]))["accuracy"] == 1


def test_bleu_and_rouge_are_those_of_their_packages():
    sacrebleu = pytest.importorskip("sacrebleu")
    scores, _ = score_texts(("bleu",), [example(["the cat sat on the mat"])], ["the cat sat on a mat"])
    expected = sacrebleu.corpus_bleu(["the cat sat on a mat"], [["the cat sat on the mat"]]).score
    assert scores["bleu"] == pytest.approx(expected / 100)
    scores, _ = score_texts(("rougeL",), [example(["the cat sat"])], ["the cat sat"])
    assert scores["rougeL"] == 1
