"""The tasks as they are published: every official format by a hand-written sample, and the shared real data."""

import itertools
import json
from collections import Counter
from pathlib import Path

import pytest

from gpt_jax.data.tables import open_table
from gpt_jax.errors import UserError
from gpt_jax.tasks.examples import Classification, Entailment, MultipleChoice, Similarity
from gpt_jax.tasks.metrics import LABEL_METRICS, SCORE_METRICS
from gpt_jax.tasks.reading import check_different_targets, read_examples, with_labels_of
from gpt_jax.tasks.registry import TASKS, find_task
from gpt_jax.tasks.task import TEXT_ROLES

SHARED = Path(__file__).resolve().parents[3] / "shared/data"
PAPERS = ("snli", "mnli", "qnli", "rte", "scitail", "race", "story_cloze", "mrpc", "qqp", "stsb", "sst2", "cola")
STORY = ("InputStoryid", *(f"InputSentence{number}" for number in (1, 2, 3, 4)),
         "RandomFifthSentenceQuiz1", "RandomFifthSentenceQuiz2", "AnswerRightEnding")  # fmt: skip


def tab(*rows):
    return "".join("\t".join(row) + "\n" for row in rows)


SNLI_ROW = {"gold_label": "neutral", "sentence1": "A man.", "sentence2": "A tall man.", "pairID": "4#0"}
RACE = {"article": "A fox.", "questions": ["Who?"], "options": [["cat", "fox"]], "answers": ["B"], "id": "high1.txt"}

# task, file of the release -> content, the first example's inputs, target and id
OFFICIAL = {
    "snli": (
        {"snli_1.0_train.jsonl": "\n".join(json.dumps(SNLI_ROW | more) for more in ({"gold_label": "-"}, {}))},
        (Entailment("A man.", "A tall man."), 1, "4#0"),
    ),
    "mnli": (
        {
            "train.tsv": tab(
                ("index", "promptID", "pairID", "genre", "sentence1_binary_parse", "sentence2_binary_parse",
                 "sentence1_parse", "sentence2_parse", "sentence1", "sentence2", "label1", "gold_label"),
                ("0", "31193", "31193n", "government", "( )", "( )", "(ROOT)", "(ROOT)", 'He said "no', "No.",
                 "contradiction", "contradiction"),
            )
        },
        (Entailment('He said "no', "No."), 2, "0"),
    ),
    "qnli": (
        {"train.tsv": tab(("index", "question", "sentence", "label"), ("5", "Who?", "A fox.", "not_entailment"))},
        (Entailment("Who?", "A fox."), 1, "5"),
    ),
    "rte": (
        {"train.tsv": tab(("index", "sentence1", "sentence2", "label"), ("0", "P.", "H.", "entailment"))},
        (Entailment("P.", "H."), 0, "0"),
    ),
    "scitail": (
        {"tsv_format/scitail_1.0_train.tsv": tab(("Pluto rotates.", '"Pluto" moves.', "entails"))},
        (Entailment("Pluto rotates.", '"Pluto" moves.'), 0, "0"),
    ),
    "race": (
        {"train/high/1.txt": json.dumps(RACE)},
        (MultipleChoice("A fox.", ("cat", "fox"), "Who?"), 1, "high1.txt/1"),
    ),
    "story_cloze": (
        {
            "cloze_test_val__spring2016 - cloze_test_ALL_val.csv": ",".join(STORY) + '\na1,He ran.,"He, too, ran.",'
            "They ran.,They stopped.,They slept.,They flew.,2\n"
        },
        (MultipleChoice("He ran. He, too, ran. They ran. They stopped.", ("They slept.", "They flew.")), 1, "a1"),
    ),
    "mrpc": (
        {
            "train.tsv": "\ufeff"
            + tab(("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"), ("1", "70", "71", "One .", "Two ."))
        },
        (Similarity("One .", "Two ."), 1, "0"),
    ),
    "qqp": (
        {
            "train.tsv": tab(
                ("id", "qid1", "qid2", "question1", "question2", "is_duplicate"),
                ("1", "2", "broken"),
                ("133273", "21", "22", "Why?", "How?", "0"),
            )
        },
        (Similarity("Why?", "How?"), 0, "133273"),
    ),
    "stsb": (
        {
            "train.tsv": tab(
                ("index", "genre", "filename", "year", "old_index", "source1", "source2", "sentence1", "sentence2",
                 "score"),
                ("0", "main-captions", "MSRvid", "2012test", "0001", "none", "none", "A plane.", "A jet.", "3.800"),
            )
        },
        (Similarity("A plane.", "A jet."), 3.8, "0"),
    ),
    "sst2": (
        {"train.tsv": tab(("sentence", "label"), ("hide new secretions ", "0"))},
        (Classification("hide new secretions"), 0, "0"),
    ),
    "cola": (
        {"train.tsv": tab(("gj04", "1", "", "They drank the pub dry."), ("gj04", "0", "*", "They drank the pub."))},
        (Classification("They drank the pub dry."), 1, "0"),
    ),
}  # fmt: skip


def test_the_papers_twelve_tasks_are_there_with_its_scores():
    assert set(PAPERS) == set(OFFICIAL) <= set(TASKS)
    assert all(TASKS[name].paper and TASKS[name].origin for name in PAPERS)
    scores = [score for name in PAPERS for score in TASKS[name].paper.values()]
    assert len(scores) == 14 and sum(scores) == pytest.approx(
        82.1 + 81.4 + 89.9 + 88.3 + 88.1 + 56.0 + 86.5 + 62.9 + 57.4 + 45.4 + 91.3 + 82.3 + 82.0 + 70.3
    )


@pytest.mark.parametrize("name", OFFICIAL)
def test_the_official_release_is_read_from_its_folder(tmp_path, name):
    files, expected = OFFICIAL[name]
    task = TASKS[name]
    for split in task.files:  # the folder must look whole
        path = tmp_path / task.files[split].replace("*", "")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if task.scheme == "race" else path.touch()
    for file, content in files.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(content)
    if name == "story_cloze":
        (tmp_path / "cloze_test_val__spring2016.csv").unlink()
    tables = task.tables(tmp_path)
    assert set(tables) == set(task.files)
    table = open_table(tables["train"], header=task.headers.get("train"), skip_bad_rows=task.skip_bad_rows)
    reading = read_examples(table, task)
    example = reading.examples[0]
    assert (example.inputs, example.target, example.id) == expected
    assert reading.unlabelled == (name == "snli") and table.skipped == (name == "qqp")


def test_every_task_can_be_described_and_scored():
    for task in TASKS.values():
        assert set(TEXT_ROLES[task.kind]) - {"question"} <= set(task.columns) <= set(task.roles)
        assert set(task.metrics) <= set(SCORE_METRICS if task.score_range else LABEL_METRICS)
        assert bool(task.labels) != bool(task.score_range)
        assert set(task.spellings.values()) <= set(task.labels)
        assert set(task.submissions) <= set(task.files) and set(task.headers) <= set(task.files)
        assert set(task.paper) <= set(task.files)


def test_labels_are_submitted_as_the_release_writes_them():
    assert [TASKS["sst2"].submission_label(label) for label in TASKS["sst2"].labels] == ["0", "1"]
    assert TASKS["rte"].submission_label("entailment") == "entailment"


def test_a_task_without_its_files_says_where_to_get_them(tmp_path):
    with pytest.raises(UserError, match="gluebenchmark.com.*train.tsv, dev.tsv, test.tsv"):
        find_task("sst2").tables()
    with pytest.raises(UserError, match="holds no train.tsv"):
        find_task("sst2").tables(tmp_path)
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / name).touch()
    assert set(find_task("sst2").tables(tmp_path)) == {"train", "valid"}  # no test file there
    assert find_task("snli").tables()["valid"] == "tfds:snli#validation"
    assert find_task("books-next").tables(tmp_path)["test"] == "books-next#test"  # these need no folder
    with pytest.raises(UserError, match="a task of your own needs its tables named: file:PATH"):
        find_task("entailment").tables(tmp_path)


def test_a_tasks_columns_can_be_renamed_without_losing_the_others(tmp_path):
    (tmp_path / "own.csv").write_text("review,label\nfine,positive\n")
    task = find_task("sst2", columns={"text": "review"})
    [example] = read_examples(open_table(f"file:{tmp_path}/own.csv"), task).examples
    assert example.inputs == Classification("fine") and example.target == 1


@pytest.mark.parametrize("name", [name for name in TASKS if name.startswith("books")])
def test_the_tasks_made_of_the_books_are_read(name):
    task = find_task(name)
    for address in task.tables().values():
        reading = read_examples(open_table(address), task)
        assert reading.bad == reading.unlabelled == 0
        assert {example.target for example in reading.examples} == set(range(len(task.labels)))
        check_different_targets(reading.examples, task)


# --- the shared data, as its README counts it

COUNTS = [
    ("snli/dev", {"entailment": 3329, "neutral": 3235, "contradiction": 3278}),
    ("snli/train", {"entailment": 3327, "neutral": 3322, "contradiction": 3350}),
    ("mnli/dev_matched", {"entailment": 3479, "neutral": 3123, "contradiction": 3213}),
    ("qnli/dev", {"entailment": 2702, "not_entailment": 2761}),
    ("rte/train", {"entailment": 1249, "not_entailment": 1241}),
    ("mrpc/train", {"different": 1169, "paraphrase": 2407}),
    ("qqp/train", {"different": 5747, "duplicate": 3252}),
    ("stsb/train", 5749),
    ("sst2/train_sentences", {"negative": 3310, "positive": 3610}),
    ("sst2/test", {"negative": 912, "positive": 909}),
    ("cola/train", {"unacceptable": 2528, "acceptable": 6023}),
]


@pytest.mark.parametrize("file, counts", COUNTS, ids=[file for file, _ in COUNTS])
def test_real_examples_are_read_without_a_word_of_configuration(file, counts):
    path = SHARED / f"tasks/{file}.jsonl"
    if not path.exists():
        pytest.skip(f"no shared data at {path}")
    task = find_task(file.split("/")[0])
    reading = read_examples(open_table(f"file:{path}"), task)
    assert reading.bad == reading.unlabelled == 0
    if task.score_range:
        assert len(reading.examples) == counts
    else:
        assert Counter(task.labels[example.target] for example in reading.examples) == counts


@pytest.mark.parametrize("name, size", [("piqa", 1838), ("copa", 100), ("openbookqa", 500), ("arc_easy", 2376)])
def test_real_multiple_choice_is_read_as_a_table_of_ones_own(name, size):
    [path] = (SHARED / "prompted" / name).glob("*.jsonl") if (SHARED / "prompted" / name).exists() else [None]
    if path is None:
        pytest.skip(f"no shared data at {SHARED}")
    columns = {"context": "query", "answers": "choices", "label": "gold"}
    task = find_task("multiple_choice", columns=columns)
    table = open_table(f"file:{path}")
    task = with_labels_of(task, table)
    examples = read_examples(table, task).examples
    assert len(examples) == size and all(isinstance(example.inputs, MultipleChoice) for example in examples)
    assert all(example.target < len(example.inputs.answers) for example in itertools.islice(examples, 100))
