"""The tasks by name: the paper's twelve, four that are made of the books, one that is evaluated only, and one's own.

Scores are those of the GPT-1 paper's Tables 2 to 4 (Radford et al. 2018). Columns and file names are those of the
official releases, of TensorFlow Datasets, and the plain names that one would choose oneself.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from gpt_jax.errors import UserError, did_you_mean
from gpt_jax.tasks.metrics import LABEL_METRICS, SCORE_METRICS
from gpt_jax.tasks.task import TEXT_ROLES, Kind, Task

_GLUE = "gluebenchmark.com/tasks"
_ID = ("id", "index", "idx", "pairID")
_GLUE_FILES = {"train": "train.tsv", "valid": "dev.tsv", "test": "test.tsv"}
_YES_NO_NEITHER = ("entailment", "neutral", "contradiction")


def _pair(roles: tuple[str, str], *names: tuple[str, str], label: tuple[str, ...] = ()) -> dict[str, tuple[str, ...]]:
    """Columns of two texts, by any of the pairs of `names` or by their roles."""
    return {
        roles[0]: (*(first for first, _ in names), roles[0]),
        roles[1]: (*(second for _, second in names), roles[1]),
        "label": (*label, "label"),
        "id": _ID,
    }


_ENTAILMENT = ("premise", "hypothesis")
_SIMILARITY = ("first", "second")
_SENTENCES = ("sentence1", "sentence2")

_TASKS = (
    # --- Table 2: natural language inference
    Task(
        name="snli",
        kind="entailment",
        metrics=("accuracy",),
        columns=_pair(_ENTAILMENT, _SENTENCES, label=("gold_label",)),
        labels=_YES_NO_NEITHER,
        unlabelled=("-", "-1"),  # no label that three of the five annotators agreed on
        paper={"test": 89.9},
        files={"train": "snli_1.0_train.jsonl", "valid": "snli_1.0_dev.jsonl", "test": "snli_1.0_test.jsonl"},
        addresses={"train": "tfds:snli#train", "valid": "tfds:snli#validation", "test": "tfds:snli#test"},
        origin="nlp.stanford.edu/projects/snli",
    ),
    Task(
        name="mnli",
        kind="entailment",
        metrics=("accuracy",),
        columns=_pair(_ENTAILMENT, _SENTENCES, label=("gold_label",)),
        labels=_YES_NO_NEITHER,
        unlabelled=("-",),
        paper={"test": 82.1, "test_mismatched": 81.4},
        files={
            "train": "train.tsv",
            "valid": "dev_matched.tsv",
            "valid_mismatched": "dev_mismatched.tsv",
            "test": "test_matched.tsv",
            "test_mismatched": "test_mismatched.tsv",
        },
        submissions={"test": "MNLI-m.tsv", "test_mismatched": "MNLI-mm.tsv"},
        origin=_GLUE,
    ),
    Task(
        name="qnli",
        kind="entailment",
        metrics=("accuracy",),
        columns=_pair(_ENTAILMENT, ("question", "sentence")),
        labels=("entailment", "not_entailment"),
        paper={"test": 88.1},
        files=_GLUE_FILES,
        submissions={"test": "QNLI.tsv"},
        origin=_GLUE,
    ),
    Task(
        name="rte",
        kind="entailment",
        metrics=("accuracy",),
        columns=_pair(_ENTAILMENT, _SENTENCES),
        labels=("entailment", "not_entailment"),
        paper={"test": 56.0},
        files=_GLUE_FILES,
        submissions={"test": "RTE.tsv"},
        origin=_GLUE,
    ),
    Task(
        name="scitail",
        kind="entailment",
        metrics=("accuracy",),
        columns=_pair(_ENTAILMENT, _SENTENCES, label=("gold_label",)),
        labels=("entails", "neutral"),
        spellings={"entailment": "entails"},
        paper={"test": 88.3},
        files={
            "train": "tsv_format/scitail_1.0_train.tsv",
            "valid": "tsv_format/scitail_1.0_dev.tsv",
            "test": "tsv_format/scitail_1.0_test.tsv",
        },
        headers=dict.fromkeys(("train", "valid", "test"), ("premise", "hypothesis", "label")),
        addresses={"train": "tfds:sci_tail#train", "valid": "tfds:sci_tail#validation", "test": "tfds:sci_tail#test"},
        origin="allenai.org/data/scitail",
    ),
    # --- Table 3: question answering and commonsense reasoning
    Task(
        name="race",
        kind="multiple_choice",
        metrics=("accuracy",),
        columns={
            "context": ("article", "context"),
            "question": ("question",),
            "answers": ("options", "answers"),
            "label": ("answer", "label"),
            "id": _ID,
        },
        labels=("A", "B", "C", "D"),
        paper={"test_middle": 62.9, "test_high": 57.4},  # both together: 59.0
        files={"train": "train", "valid": "dev", "test_middle": "test/middle", "test_high": "test/high"},
        scheme="race",  # TFDS has it, but its lists of lists need TensorFlow
        origin="www.cs.cmu.edu/~glai1/data/race",
    ),
    Task(
        name="story_cloze",
        kind="multiple_choice",
        metrics=("accuracy",),
        columns={
            "context": ("InputSentence1+InputSentence2+InputSentence3+InputSentence4", "context"),
            "answers": ("RandomFifthSentenceQuiz1+RandomFifthSentenceQuiz2", "endings", "answers"),
            "label": ("AnswerRightEnding", "label"),
            "id": ("InputStoryid", *_ID),
        },
        labels=("1", "2"),
        paper={"test": 86.5},
        # The paper trains on a part of what the release calls validation; the rest of it is held out.
        files={"train": "cloze_test_val__spring2016*.csv", "test": "cloze_test_test__spring2016*.csv"},
        addresses={"train": "tfds:story_cloze/2016#validation", "test": "tfds:story_cloze/2016#test"},
        origin="cs.rochester.edu/nlp/rocstories",
    ),
    # --- Table 4: semantic similarity and classification
    Task(
        name="mrpc",
        kind="similarity",
        metrics=("f1", "accuracy"),
        columns=_pair(_SIMILARITY, ("#1 String", "#2 String"), _SENTENCES, label=("Quality",)),
        labels=("different", "paraphrase"),
        spellings={"0": "different", "1": "paraphrase"},
        paper={"test": 82.3},
        files=_GLUE_FILES,
        submissions={"test": "MRPC.tsv"},
        origin=_GLUE,
    ),
    Task(
        name="qqp",
        kind="similarity",
        metrics=("f1", "accuracy"),
        columns=_pair(_SIMILARITY, ("question1", "question2"), label=("is_duplicate",)),
        labels=("different", "duplicate"),
        spellings={"0": "different", "1": "duplicate"},
        paper={"test": 70.3},
        files=_GLUE_FILES,
        skip_bad_rows=True,  # GLUE's train.tsv has a few lines that end before their last column
        submissions={"test": "QQP.tsv"},
        origin=_GLUE,
    ),
    Task(
        name="stsb",
        kind="similarity",
        metrics=("pearson", "spearman"),
        columns=_pair(_SIMILARITY, _SENTENCES, label=("score",)),
        score_range=(0.0, 5.0),
        paper={"test": 82.0},
        files=_GLUE_FILES,
        submissions={"test": "STS-B.tsv"},
        origin=_GLUE,
    ),
    Task(
        name="sst2",
        kind="classification",
        metrics=("accuracy",),
        columns={"text": ("sentence", "text"), "label": ("label",), "id": _ID},
        labels=("negative", "positive"),
        spellings={"0": "negative", "1": "positive"},
        paper={"test": 91.3},
        files=_GLUE_FILES,
        submissions={"test": "SST-2.tsv"},
        origin=_GLUE,
    ),
    Task(
        name="cola",
        kind="classification",
        metrics=("matthews", "accuracy"),
        columns={"text": ("sentence", "text"), "label": ("label",), "id": _ID},
        labels=("unacceptable", "acceptable"),
        spellings={"0": "unacceptable", "1": "acceptable"},
        paper={"test": 45.4},
        files=_GLUE_FILES,
        headers=dict.fromkeys(("train", "valid"), ("source", "label", "mark", "sentence")),
        submissions={"test": "CoLA.tsv"},
        origin=_GLUE,
    ),
)

_SPLITS = ("train", "valid", "test")
_BOOK_TASKS = tuple(
    Task(
        name=name,
        kind=kind,
        metrics=("accuracy",),
        columns={role: (role,) for role in (*TEXT_ROLES[kind], "label", "id")} | columns,
        labels=labels,
        addresses={split: f"{name}#{split}" for split in _SPLITS},
    )
    for name, kind, columns, labels in (
        ("books-author", "classification", {}, ("austen", "chesterton", "edgeworth", "melville", "shakespeare")),
        ("books-next", "entailment", {"premise": ("first",), "hypothesis": ("second",)}, ("elsewhere", "follows")),
        ("books-same", "similarity", {}, ("different", "same")),
        ("books-choice", "multiple_choice", {}, ("0", "1", "2", "3")),
    )
)

TASKS = {task.name: task for task in (*_TASKS, *_BOOK_TASKS)}

# What pretrained models are asked without learning it: the paper's zero-shot evaluation (GPT-1, section 5).
ZERO_SHOT_TASKS = {
    "winograd": Task(
        name="winograd",
        kind="substitution",
        metrics=("accuracy",),
        columns={
            "options": ("context_options", "options"),
            "continuation": ("continuation",),
            "label": ("gold", "label"),
            "id": _ID,
        },
        labels=("0", "1"),
    )
}


def find_task(
    name: str,
    *,
    columns: Mapping[str, str] | None = None,
    labels: Sequence[str] = (),
    score_range: tuple[float, float] | None = None,
    metrics: Sequence[str] = (),
    tasks: Mapping[str, Task] = TASKS,
) -> Task:
    """The task called `name`, or a task of one's own where `name` is a kind of task.

    Args:
      name: of `tasks`, or classification | entailment | similarity | multiple_choice.
      columns: role -> the column's name in the user's tables, or several as NAME+NAME. Roles that are left out have
        their own name ("text", "label", ...), or for a task of `TASKS` the names that it is published with.
      labels, score_range, metrics: instead of the task's own; see `Task`. A task of one's own without any of them has
        the labels that its training rows show, and is scored by accuracy (by Pearson's r where it has scores).
      tasks: those that can be named; for an evaluation `TASKS | ZERO_SHOT_TASKS`.

    Raises:
      UserError: no such task, role or metric; labels and scores at once.
    """
    if name in tasks:
        task = tasks[name]
    elif name in TEXT_ROLES:
        task = own_task(name)
    else:
        names = (*tasks, *TEXT_ROLES)
        raise UserError(f"data.task={name!r}: no such task.{did_you_mean(name, names)} There are: {', '.join(names)}.")
    if labels and score_range or (score_range and task.kind == "multiple_choice"):
        raise UserError(f"data.task={name}: expected labels or a score_range, not both; multiple choice has no scores.")
    if score_range and not (
        score_range[0] < score_range[1] and all(float(limit).is_integer() for limit in score_range)
    ):
        raise UserError(f"score_range={tuple(score_range)}: expected two whole numbers, the lower one first.")
    if labels:
        task = dataclasses.replace(task, labels=tuple(map(str, labels)), spellings={}, score_range=None)
    if score_range:
        low, high = map(float, score_range)
        task = dataclasses.replace(task, labels=(), score_range=(low, high), metrics=SCORE_METRICS)
    if metrics:
        known = SCORE_METRICS if task.score_range else LABEL_METRICS
        for metric in metrics:
            if metric not in known:
                raise UserError(
                    f"metric {metric!r} does not score data.task={name}.{did_you_mean(metric, known)} "
                    f"Expected some of {', '.join(known)}."
                )
        task = dataclasses.replace(task, metrics=tuple(metrics))
    return task.with_columns(columns or {})


def own_task(kind: Kind) -> Task:
    """A task of the user's own, whose columns are called as their roles and whose labels are not known yet."""
    roles = (*TEXT_ROLES[kind], "label", "id")
    return Task(name=kind, kind=kind, metrics=("accuracy",), columns={role: (role,) for role in roles})
