"""Rows become examples through a column map; what is wrong with a row is said with its place, or counted."""

from dataclasses import dataclass
from typing import Any

import pytest

from gpt_jax.errors import UserError
from gpt_jax.tasks.examples import Classification, Entailment, MultipleChoice, Similarity
from gpt_jax.tasks.reading import check_different_targets, read_examples, with_labels_of
from gpt_jax.tasks.registry import find_task


@dataclass
class Row:
    fields: dict[str, Any]
    place: str
    number: int = 0


def rows(*fields):
    return [Row(one, f"own.csv, line {number + 2}", number) for number, one in enumerate(fields)]


def own(kind, *fields, **settings):
    """The task and the examples of a user's own table."""
    task = with_labels_of(find_task(kind, **settings), rows(*fields))
    return task, read_examples(rows(*fields), task).examples


def problem(kind, *fields, skip_bad_rows=False, labelled=True, **settings):
    with pytest.raises(UserError) as error:
        task = find_task(kind, **settings)
        task = with_labels_of(task, rows(*fields)) if labelled else task
        read_examples(rows(*fields), task, skip_bad_rows=skip_bad_rows, labelled=labelled)
    return str(error.value)


TEXTS = ({"text": "a", "label": "x"}, {"text": "b", "label": "y"})


# --- a table of one's own


def test_three_lines_are_enough_for_a_table_of_ones_own():
    table = ({"review": " good ", "stars": "5"}, {"review": "bad", "stars": "1"}, {"review": "so so", "stars": "10"})
    task, examples = own("classification", *table, columns={"text": "review", "label": "stars"})
    assert task.labels == ("1", "5", "10")
    assert [example.inputs for example in examples] == [Classification(text) for text in ("good", "bad", "so so")]
    assert [example.target for example in examples] == [1, 0, 2]
    assert examples[0].place == "own.csv, line 2" and [example.id for example in examples] == ["0", "1", "2"]


def test_columns_that_are_called_as_their_roles_need_no_map():
    pair = {"premise": "a", "hypothesis": "b", "id": 7, "label": "y"}
    _, examples = own("entailment", pair, pair | {"label": "n"})
    assert examples[0].inputs == Entailment("a", "b") and examples[0].id == "7"
    _, examples = own("similarity", *({"first": "a", "second": "b", "label": label} for label in "yn"))
    assert examples[0].inputs == Similarity("a", "b")


def test_labels_may_be_numbers_of_any_spelling_or_truth_values():
    table = [{"text": "a", "label": label} for label in (0, 1.0, "1", 0.0)]
    task, examples = own("classification", *table)
    assert task.labels == ("0", "1") and [example.target for example in examples] == [0, 1, 1, 0]
    task, examples = own("classification", *({"text": "a", "label": label} for label in (True, False)))
    assert task.labels == ("False", "True") and [example.target for example in examples] == [1, 0]


def test_labels_that_are_given_keep_their_order():
    task, examples = own("classification", *TEXTS, labels=("y", "x"))
    assert task.labels == ("y", "x") and [example.target for example in examples] == [1, 0]


def test_scores_are_read_in_their_range():
    table = [{"first": "a", "second": "b", "label": score} for score in ("1", 3.5, "2.25")]
    task, examples = own("similarity", *table, score_range=(1, 5))
    assert [example.target for example in examples] == [1.0, 3.5, 2.25]
    assert task.metrics == ("pearson", "spearman")
    for score in ("0.5", "6", "high", None, "nan"):
        bad = {"first": "a", "second": "b", "label": score}
        assert "line 3: the score" in problem("similarity", table[0], bad, score_range=(1, 5))


def test_several_columns_are_one_text_or_the_answers():
    table = (
        {"a": "one", "b": "two", "c": "", "s1": "x", "s2": "y", "label": 1},
        {"a": "3", "b": "4", "c": "5", "s1": "x", "s2": "z", "label": 0},
    )
    task, examples = own("multiple_choice", *table, columns={"answers": "a+b+c", "context": "s1+s2"})
    assert examples[0].inputs == MultipleChoice("x y", ("one", "two"))  # the table's third answer is empty here
    assert examples[1].inputs == MultipleChoice("x z", ("3", "4", "5"))
    assert [example.target for example in examples] == [1, 0]


@pytest.mark.parametrize("labels, targets", [("AC", [0, 2]), ((1, 3), [0, 2]), ((0, 2), [0, 2]), (("2", "1"), [1, 0])])
def test_right_answers_are_letters_or_numbers_from_0_or_from_1(labels, targets):
    table = [{"context": "c", "answers": ["a", "b", "d"], "label": label} for label in labels]
    assert [example.target for example in own("multiple_choice", *table)[1]] == targets


def test_a_question_is_optional_unless_its_column_was_named():
    choice = {"context": "c", "answers": ["a", "b"], "label": "A"}
    other = choice | {"question": "why?", "label": "B"}
    _, examples = own("multiple_choice", choice, other)
    assert [example.inputs.question for example in examples] == ["", "why?"]
    assert "no column 'ask' for the question" in problem("multiple_choice", choice, other, columns={"question": "ask"})
    assert "no column 'key' for the id" in problem("classification", *TEXTS, columns={"id": "key"})


def test_rows_without_labels_are_read_for_prediction():
    task = find_task("sst2")
    table = rows({"index": "7", "sentence": "a"}, {"index": "9", "sentence": "b"})
    examples = read_examples(table, task, labelled=False).examples
    assert [(example.id, example.target) for example in examples] == [("7", None), ("9", None)]


# --- what a user can get wrong


def test_a_missing_column_is_answered_with_those_there_are():
    message = problem("classification", {"txt": "a", "label": "x"}, labels=("x", "y"))
    assert "line 2: no column 'text' for the text of a classification task" in message
    assert "There are: 'txt', 'label'. Did you mean 'txt'? Set data.columns.text=NAME." in message
    assert "no column 'gold'" in problem("classification", *TEXTS, columns={"label": "gold"})
    assert "no column 'a+b'" in problem("sst2", {"a": "x", "label": 1}, columns={"text": "a+b"})


def test_an_unknown_label_is_answered_with_line_value_and_the_allowed_ones():
    message = problem("sst2", {"sentence": "a", "label": "1"}, {"sentence": "b", "label": "postive"})
    assert "line 3: unknown label 'postive' in column 'label'. Did you mean 'positive'?" in message
    assert "Expected one of negative, positive, 0, 1." in message
    assert "unknown label ''" in problem("sst2", {"sentence": "a", "label": None})
    choice = {"context": "c", "answers": ["a", "b"], "label": "C"}
    assert "unknown label 'C' in column 'label'. Expected one of A, B." in problem("race", choice)


@pytest.mark.parametrize("text", ["", "  \n", None, ["a", ""], {}, "\ud800"])
def test_a_text_that_is_none_is_named(text):
    good = {"premise": "a", "hypothesis": "b", "label": "neutral"}
    message = problem("snli", good, good | {"hypothesis": text})
    assert message.startswith("own.csv, line 3: 'hypothesis' ")


def test_too_few_and_too_many_answers_are_named():
    choice = {"context": "c", "label": "A"}
    for answers in (["a"], ["a", None, ""], list("abcdefghijklmnopq")):
        assert "answers. Expected 2 to 16 (data.max_answers)" in problem("race", choice | {"answers": answers})
    assert "'answer 2' is empty" in problem("race", choice | {"answers": ["a", "", "c"]})
    assert "name them all: data.columns.answers=ONE+TWO" in problem("race", choice | {"answers": "a"})


def test_bad_rows_are_skipped_and_counted_when_asked():
    table = rows(
        *TEXTS, {"text": "", "label": "x"}, {"text": "c", "label": "z"}, {"label": "x"}, {"text": "d", "label": "y"}
    )
    reading = read_examples(table, find_task("classification", labels=("x", "y")), skip_bad_rows=True)
    assert [example.inputs.text for example in reading.examples] == ["a", "b", "d"]
    assert (reading.bad, reading.unlabelled) == (3, 0)


def test_no_examples_left_says_why():
    message = problem("sst2", {"sentence": "", "label": "1"}, {"sentence": "a", "label": "9"}, skip_bad_rows=True)
    assert "No examples are left: 0 rows without a label were dropped, 2 bad ones skipped." in message
    assert "own.csv, line 2: 'sentence' is empty" in message


def test_a_single_class_is_refused():
    assert "have the same label ('x', in column 'label')" in problem("classification", TEXTS[0], TEXTS[0])
    task = find_task("sst2")
    examples = read_examples(rows(*({"sentence": "a", "label": "1"} for _ in range(3))), task).examples
    with pytest.raises(UserError, match="All 3 training examples have the same label 'positive'.*line 4"):
        check_different_targets(examples, task)
    task = find_task("stsb")
    pair = {"sentence1": "a", "sentence2": "b", "score": 0}
    with pytest.raises(UserError, match="same score 0.0"):
        check_different_targets(read_examples(rows(pair, pair), task).examples, task)
    check_different_targets(read_examples(rows(pair, pair | {"score": 1}), task).examples, task)


def test_a_column_of_texts_is_not_taken_for_labels():
    message = problem("classification", *({"text": "a", "label": f"text {number}"} for number in range(1001)))
    assert "line 1002: the label 'text 1000' is the 1,001th different one. Is column 'label'" in message


def test_right_answers_that_are_called_by_their_texts_are_refused():
    table = [{"context": "c", "answers": ["red", "blue"], "label": label} for label in ("red", "blue")]
    assert "Expected letters (A, B, ...) or numbers" in problem("multiple_choice", *table)
    table = [one | {"label": number - 1} for number, one in enumerate(table)]
    assert "calls the right answers '-1', '0'. Expected" in problem("multiple_choice", *table)


def test_ids_that_repeat_are_refused_for_prediction_only():
    table = ({"id": 1, "sentence": "a", "label": 0}, {"id": "1", "sentence": "b", "label": 1})
    assert "line 3: the id '1' stands at own.csv, line 2 already" in problem("sst2", *table, labelled=False)
    assert len(read_examples(rows(*table), find_task("sst2")).examples) == 2


def test_a_row_without_the_label_column_is_skipped_when_asked_but_not_a_table_without_it():
    task = with_labels_of(find_task("classification"), rows({"text": "c"}, *TEXTS))
    assert task.labels == ("x", "y")
    with pytest.raises(UserError, match="line 2: no column 'label'"):
        with_labels_of(find_task("classification"), rows({"text": "c"}, {"text": "d"}))


# --- names


def test_unknown_tasks_roles_metrics_and_ranges_are_answered_with_the_known_ones():
    for settings, message in (
        ({"name": "sst-2"}, "no such task. Did you mean 'sst2'? There are: snli, "),
        ({"name": "sst2", "columns": {"txt": "a"}}, "data.columns.txt: .* Did you mean 'text'. It has text, label, id"),
        ({"name": "sst2", "metrics": ["acuracy"]}, "Did you mean 'accuracy'. Expected some of accuracy, f1, matthews"),
        ({"name": "stsb", "metrics": ["f1"]}, "Expected some of pearson, spearman"),
        ({"name": "similarity", "score_range": (5, 0)}, "expected two whole numbers"),
        ({"name": "similarity", "score_range": (0, 0.5)}, "expected two whole numbers"),
        ({"name": "similarity", "score_range": (0, 5), "labels": ("a", "b")}, "not both"),
        ({"name": "multiple_choice", "score_range": (0, 5)}, "multiple choice has no scores"),
    ):
        with pytest.raises(UserError, match=message.replace("?", "[?]")):
            find_task(**settings)
