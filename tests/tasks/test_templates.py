"""Published rows become the prompts that their templates say."""

from dataclasses import dataclass
from typing import Any

import pytest

from gpt_jax.errors import UserError
from gpt_jax.tasks.generated import GENERATED
from gpt_jax.tasks.prompting import read_prompts
from gpt_jax.tasks.published_rows import READERS
from gpt_jax.tasks.shots import draw_shots, prefix_of
from gpt_jax.tasks.templates import METRICS, prompted_tasks, with_fields


@dataclass
class Row:
    fields: dict[str, Any]
    place: str = "test.jsonl, line 1"
    number: int = 0


def prompt(task: str, fields: dict[str, Any], *, shots: bool = False, **own):
    found, _ = read_prompts([Row(fields)], with_fields(prompted_tasks()[task], own), shots=shots)
    return found[0]


def test_every_template_is_whole():
    tasks = prompted_tasks()
    assert set(GENERATED) <= set(tasks)
    for task in tasks.values():
        for template in (*task.templates(shots=False), *task.templates(shots=True)):
            assert set(template.metrics) <= set(METRICS[template.kind])
            assert template.rows == "" or template.rows in READERS
            assert template.columns


# task, published row, contexts, continuations, gold
PUBLISHED = [
    ("lambada", {"text": "She saw the dog and said dog"}, ["She saw the dog and said"], [" dog"], ()),
    ("piqa", {"goal": "boil water", "sol1": "use a pot", "sol2": "use a sieve", "label": 0},
     ["Question: boil water\nAnswer:"], [" use a pot", " use a sieve"], (0,)),
    ("piqa", {"query": "Question: boil water\n", "choices": ["a pot", "a sieve"], "gold": 1},
     ["Question: boil water\nAnswer:"], [" a pot", " a sieve"], (1,)),
    ("arc-easy", {"question": {"stem": "Why?", "choices": [{"text": "so", "label": "A"}, {"text": "no", "label": "B"}]},
                  "answerKey": "B"}, ["Question: Why?\nAnswer:"], [" so", " no"], (1,)),
    ("arc-challenge", {"question": "Why?", "choices": {"text": ["so", "no"], "label": ["1", "2"]}, "answerKey": "1"},
     ["Question: Why?\nAnswer:"], [" so", " no"], (0,)),
    ("openbookqa", {"question_stem": "Oaks grow from", "choices": {"text": ["acorns", "eggs"], "label": ["A", "B"]},
                    "answerKey": "A"}, ["Oaks grow from"], [" acorns", " eggs"], (0,)),
    ("copa", {"premise": "The man fell.", "choice1": "He slipped.", "choice2": "It rained.", "question": "cause",
              "label": 0}, ["The man fell because"], [" he slipped.", " it rained."], (0,)),
    ("copa", {"query": "The man fell, because", "choices": ["he slipped.", "it rained."], "gold": 0},
     ["The man fell, because"], [" he slipped.", " it rained."], (0,)),
    ("winograd", {"text": "The cup broke since it was thin.", "pronoun": "it", "pronoun_loc": 20,
                  "options": ["The cup", "The floor"], "label": 0},
     ["The cup broke since the cup", "The cup broke since the floor"], [" was thin."] * 2, (0,)),
    ("winograd", {"context_options": ["we saw the cat", "we saw the dog"], "continuation": ".", "gold": 1},
     ["we saw the cat", "we saw the dog"], ["."] * 2, (1,)),
    ("winogrande", {"sentence": "Ann saw Eve as _ was tall.", "option1": "Ann", "option2": "Eve", "answer": "2"},
     ["Ann saw Eve as Ann", "Ann saw Eve as Eve"], [" was tall."] * 2, (1,)),
    ("hellaswag", {"activity_label": "Baking", "ctx": "A man [header] bakes [title] He", "label": "1",
                   "endings": ["runs.", "eats  it."]}, ["Baking: A man bakes. He"], [" runs.", " eats it."], (1,)),
    ("story_cloze", {f"InputSentence{n}": f"s{n}." for n in range(1, 5)} | {
        "RandomFifthSentenceQuiz1": "yes.", "RandomFifthSentenceQuiz2": "no.", "AnswerRightEnding": "2"},
     ["s1. s2. s3. s4."], [" yes.", " no."], (1,)),
    ("boolq", {"passage": "Ice is cold.", "question": "is ice cold", "answer": True},
     ["Ice is cold.\nquestion: is ice cold?\nanswer:"], [" no", " yes"], (1,)),
    ("race", {"article": "Text.", "question": "What?", "options": ["a", "b", "c", "d"], "answer": "C"},
     ["Text.\n\nQuestion: What?\nAnswer:"], [" a", " b", " c", " d"], (2,)),
    ("cbt", {"sentences": ["`` Hi , '' he said .", "It rained ."], "question": "The XXXXX did n't bark .",
             "options": ["dog", "cat"], "answer": "dog"},
     ['"Hi," he said. It rained. The'], [" dog didn't bark.", " cat didn't bark."], (0,)),
    ("cb", {"premise": "It rains.", "hypothesis": "it is wet", "label": "neutral"},
     ["It rains.\nquestion: it is wet. true, false, or neither?\nanswer:"], [" true", " false", " neither"], (2,)),
    ("rte", {"premise": "It rains.", "hypothesis": "It is wet.", "label": "entailment"},
     ["It rains.\nquestion: It is wet. True or False?\nanswer:"], [" True", " False"], (0,)),
    ("wic", {"sentence1": "a bank", "sentence2": "the bank", "word": "bank", "label": False},
     ["a bank\nthe bank\nquestion: Is the word 'bank' used in the same way in the two sentences above?\nanswer:"],
     [" no", " yes"], (0,)),
    ("wsc", {"text": "Ann told Eve that she won.", "target": {"span1_text": "Eve", "span2_text": "she",
             "span2_index": 4, "span1_index": 2}, "label": True},
     ["Passage: Ann told Eve that *she* won.\nQuestion: In the passage above, does \"*she*\" stand for Eve?\nAnswer:"],
     [" no", " yes"], (1,)),
    ("multirc", {"passage": {"text": "P.", "questions": [{"question": "Q?", "answers": [{"text": "A", "label": 1}]}]},
                 "idx": 3}, ["P.\nQuestion: Q?\nAnswer: A\nIs this answer right?"], [" no", " yes"], (1,)),
    ("record", {"passage": {"text": "Rome is old.\n@highlight\nParis too", "entities": [{"start": 0, "end": 3},
                {"start": 24, "end": 28}]}, "qas": [{"query": "@placeholder is old", "answers": [{"text": "Rome"}]}]},
     ["Rome is old.\n- Paris too\n-"], [" Rome is old", " Paris is old"], (0,)),
    ("translation", {"source": "hello", "target": "bonjour"}, ["hello ="], [], ()),
    ("summarisation", {"article": "Long.", "highlights": "Short."}, ["Long.\nTL;DR:"], [], ()),
    ("squad", {"context": "C.", "question": "Q?", "answers": {"text": ["a", "b"]}}, ["C.\nQ: Q?\nA:"], [], ()),
    ("own", {"query": "1 + 1 is", "choices": ["two", "three"], "gold": "two"}, ["1 + 1 is"], [" two", " three"], (0,)),
]  # fmt: skip


@pytest.mark.parametrize(("task", "fields", "contexts", "continuations", "gold"), PUBLISHED)
def test_a_published_row_is_asked_as_its_template_says(task, fields, contexts, continuations, gold):
    found = prompt(task, fields)
    assert list(dict.fromkeys(found.contexts)) == contexts
    assert list(found.continuations) == continuations
    assert found.gold == gold


def test_lambada_has_a_blank_to_fill_as_soon_as_examples_are_shown():
    found = prompt("lambada", {"text": "He saw the cat"}, shots=True)
    assert found.solved == "He saw the ____. → cat"
    task = prompted_tasks()["lambada"]
    [template, _] = task.templates(shots=True)
    assert prefix_of(["b", "a"], template) == "Fill in the blank.\n\na\n\nb\n\n"


def test_an_own_template_needs_nothing_but_its_columns():
    fields = {"animal": "cow", "yes": "moo", "no": "baa"}
    own = {"context": "A {animal} says", "choices": ("{yes}", "{no}"), "gold": "right", "labels": ("first", "second")}
    found = prompt("own", fields | {"right": "second"}, **own)
    assert (found.contexts[0], found.continuations, found.gold) == ("A cow says", (" moo", " baa"), (1,))
    found = prompt("piqa", fields, kind="free_form", context="{animal}\\n:", answers=("{yes}",), metrics=("f1",))
    assert (found.contexts, found.answers) == (("cow\n:",), ("moo",))


@pytest.mark.parametrize(
    ("task", "fields", "own", "words"),
    [
        ("piqa", {"goal": "a", "sol1": "b", "label": 0}, {}, ["not a row of piqa", "'sol2'", "'query'", "line 1"]),
        ("arc-easy", {"question": "a", "answerKey": "A"}, {}, ["'choices'", "line 1"]),
        ("piqa", {"goal": " ", "sol1": "b", "sol2": "c", "label": 0}, {"context": "{goal}"}, ["context is empty"]),
        ("piqa", {"goal": "a", "sol1": "b", "sol2": "", "label": 0}, {}, ["choice is empty", "'{sol2}'"]),
        ("piqa", {"goal": "a", "sol1": "b", "sol2": "c", "label": 2}, {}, ["label=2", "0 to 1"]),
        ("race", {"article": "a", "question": "b", "options": ["c", "d"], "answer": "E"}, {}, ["'E'", "A, B, C, D"]),
        ("own", {"query": "a", "choices": ["b"], "gold": 0}, {}, ["1 choices"]),
        ("own", {"query": "a", "choices": ["2", "1", "0"], "gold": "2"}, {}, ["gold='2'", "labels", "line 1"]),
        ("own", {"query": "a", "choices": ["b", None], "gold": 0}, {}, ["choice is empty", "None", "line 1"]),
        ("own", {"query": None, "choices": ["b", "c"], "gold": 0}, {}, ["context is empty", "'query'", "line 1"]),
        ("questions", {"question": float("nan"), "answers": ["b"]}, {}, ["context is empty", "nan", "'question'"]),
        ("questions", {"question": "a", "answers": [""]}, {}, ["answer is empty", "line 1"]),
        ("piqa", {}, {"contxt": "a"}, ["data.template.contxt", "Did you mean 'context'?"]),
        ("piqa", {}, {"kind": "choices"}, ["kind='choices'", "multiple_choice"]),
        ("piqa", {}, {"kind": "cloze"}, ["cloze template needs context and continuation"]),
        ("piqa", {}, {"normalisation": "word"}, ["normalisation='word'", "token"]),
        ("piqa", {}, {"metrics": ("acuracy",)}, ["'acuracy'", "Did you mean 'accuracy'?"]),
        ("piqa", {}, {"context": "{goal"}, ["not a format string"]),
        ("piqa", {}, {"context": "{goal} {}"}, ["{} names no column", "{question}"]),
        ("piqa", {}, {"context": "{0}"}, ["{0} names no column"]),
        ("translation", {}, {"stop": ("",)}, ["no stop string may be empty"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_message(task, fields, own, words):
    with pytest.raises(UserError) as error:
        prompt(task, fields, **own)
    assert all(word in str(error.value) for word in words), error.value


def test_a_gold_in_digits_is_read_as_its_labels_say_or_as_the_one_thing_that_it_can_be():
    fields = {"query": "1 + 1 is", "choices": ["2", "1", "0"]}
    assert prompt("own", fields | {"gold": "2"}, labels=("0", "1", "2")).gold == (2,)
    assert prompt("own", fields | {"gold": "1"}).gold == (1,)  # both say the same
    assert prompt("own", {"query": "q", "choices": ["3", "5"], "gold": "3"}).gold == (0,)


def test_braces_that_are_meant_are_no_columns():
    assert prompt("own", {"query": "q", "choices": ["a", "b"], "gold": 0}, context="{{set}} {query}").contexts[0] == (
        "{set} q"
    )


def test_what_stands_close_to_a_pronoun_stays_close():
    fields = {"sentence": "Eve took _'s wallet.", "option1": "Ann", "option2": "Bea", "answer": "1"}
    assert prompt("winogrande", fields).solved == "Eve took Ann's wallet."
    fields = {"text": "Ann saw her-self.", "pronoun": "her", "pronoun_loc": 8, "options": ["Ann", "Eve"], "label": 0}
    assert prompt("winograd", fields).continuations == ("-self.",) * 2


def test_fewer_shots_are_the_first_of_more_and_never_the_asked_row():
    for number in range(20):
        most = draw_shots(number, 19, 20, seed=0, task="winograd", asked_in_pool=True)
        assert sorted([*most, number]) == list(range(20))
        for count in (0, 1, 8):
            assert draw_shots(number, count, 20, seed=0, task="winograd", asked_in_pool=True) == most[:count]
    first = [draw_shots(n, 3, 1000, seed=0, task="piqa", asked_in_pool=False) for n in range(9)]
    assert first != [draw_shots(n, 3, 1000, seed=1, task="piqa", asked_in_pool=False) for n in range(9)]
    assert len({tuple(own) for own in first}) == 9  # every example draws its own
