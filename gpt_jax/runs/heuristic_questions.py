"""GPT-1's zero-shot heuristics (section 5) as questions: labelled examples, asked without prompts."""

import dataclasses

import numpy as np
from ml_collections import ConfigDict

from gpt_jax.data.tables import Table, open_table
from gpt_jax.errors import UserError
from gpt_jax.parallel.runtime import announce
from gpt_jax.runs.problem import sample
from gpt_jax.runs.questions import Answers, Asked, batches_of
from gpt_jax.tasks.examples import Example
from gpt_jax.tasks.metrics import compute_metrics
from gpt_jax.tasks.prompts import Heuristic, Prompts, above, best_threshold, encode_prompts, heuristic_of, likeliest
from gpt_jax.tasks.reading import check_named_answers, read_examples, with_labels_of
from gpt_jax.tasks.registry import TASKS, ZERO_SHOT_TASKS, find_task
from gpt_jax.tasks.task import Task
from gpt_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Labelled examples, and their candidates as the model reads them."""

    examples: list[Example]
    prompts: Prompts

    @property
    def targets(self) -> np.ndarray:
        """int [examples]."""
        return np.array([example.target for example in self.examples])

    def scores(self, model: Asked, heuristic: Heuristic) -> list[np.ndarray]:
        """Of each example, float64 [candidates]."""
        texts = model.texts(self.prompts.sequences, self.prompts.starts)
        return heuristic.scores(model.log_probabilities(texts)[0], self.prompts)


@dataclasses.dataclass(frozen=True)
class HeuristicQuestion:
    """One split of one task; see `questions.Question`.

    calibration: rows on which a threshold is found; None: none are given, or there is no threshold.
    """

    name: str
    split: str
    labelled: Task
    heuristic: Heuristic
    asked: Labelled
    calibration: Labelled | None
    tables: dict[str, str]  # split -> fingerprint

    shots = None

    @property
    def task(self) -> str:
        """Its name."""
        return self.labelled.name

    @property
    def metrics(self) -> tuple[str, ...]:
        """The task's own."""
        return self.labelled.metrics

    @property
    def examples(self) -> int:
        """How many are scored."""
        return len(self.asked.examples)

    @property
    def thresholded(self) -> bool:
        """Whether an example has a single candidate, whose score is held against a threshold."""
        return bool(self.asked.prompts.candidates[0] == 1)

    @property
    def described(self) -> str:
        """The heuristic in words, with where its threshold comes from."""
        words = self.heuristic.description
        if self.calibration is not None:
            words += f", the best of {len(self.calibration.examples):,} training rows"
        elif self.thresholded:
            words += ", the median of the scored sentences"
        return words

    @property
    def chance(self) -> float:
        """The first metric of guessing: 0 for Matthews' correlation, else one of as many answers as there are."""
        if self.metrics[0] == "matthews":
            return 0.0
        return float(np.mean(1 / np.maximum(self.asked.prompts.candidates, 2)))

    @property
    def facts(self) -> dict:
        """For data.json."""
        return {
            "tables": self.tables,
            "labels": list(self.labelled.labels),
            "examples": self.examples,
            "truncated": self.asked.prompts.truncated,
        }

    def batches(self, size: int) -> int:
        """How many batches of `size` texts it takes."""
        parts = [part for part in (self.asked, self.calibration) if part]
        return sum(batches_of(len(part.prompts.sequences), size) for part in parts)

    def answer(self, model: Asked) -> Answers:
        """What `model` says: by the likeliest candidate, or by a threshold."""
        scores = self.asked.scores(model, self.heuristic)
        threshold = None
        if not self.thresholded:
            chosen = likeliest(scores)
        else:
            if self.calibration is None:
                threshold = float(np.median(np.concatenate(scores)))
            else:
                own = self.calibration.scores(model, self.heuristic)
                threshold = best_threshold(own, self.calibration.targets)
            chosen = above(scores, threshold)
        labels = self.labelled.labels
        metrics = compute_metrics(self.metrics, chosen, self.asked.targets, num_labels=len(labels))
        rows = [
            {
                "id": example.id,
                "prediction": labels[label],
                "label": labels[example.target],
                "scores": own.tolist(),
            }
            for example, label, own in zip(self.asked.examples, chosen, scores, strict=True)
        ]
        return Answers(metrics, rows, {} if threshold is None else {"threshold": threshold})


def open_heuristic(data: ConfigDict, tokenizer: Tokenizer, context_length: int) -> list[HeuristicQuestion]:
    """One task's splits, with their labels. UserError: what is wrong with the task, its tables or the tokenizer."""
    task = find_task(
        data.task,
        columns={role: name for role, name in data.columns.items() if name is not None},
        labels=data.labels,
        tasks=TASKS | ZERO_SHOT_TASKS,
    )
    heuristic = heuristic_of(task)
    own = (TASKS | ZERO_SHOT_TASKS)[task.name].labels if task.name in TASKS | ZERO_SHOT_TASKS else ()
    if task.labels != own and set(task.labels) == set(own):
        raise UserError(f"data.labels={task.labels}: the heuristic of {task.name} answers in the order {own}.")
    tables = find_tables(task, data)
    scored = [split for split in tables if split != "train"]
    task = with_labels_of(task, tables[scored[0]])

    def labelled(split: str, most: int) -> Labelled:
        skip = data.skip_bad_rows or task.skip_bad_rows
        reading = read_examples(tables[split], task, skip_bad_rows=skip, max_answers=data.max_answers)
        for count, what in ((reading.unlabelled, "unlabelled"), (reading.bad + tables[split].skipped, "bad")):
            if count:
                announce(f"{task.name}, {split}: {count} {what} rows are left out")
        examples = sample(reading.examples, most)
        check_named_answers(examples, task)
        prompts = encode_prompts(examples, heuristic, tokenizer, context_length)
        if prompts.truncated:
            announce(
                f"{task.name}, {split}: of {prompts.truncated:,} of {len(examples):,} examples the first tokens are "
                f"cut to fit the context of {context_length:,}"
            )
        return Labelled(examples, prompts)

    asked = {split: labelled(split, data.max_test) for split in scored}
    thresholded = next(iter(asked.values())).prompts.candidates[0] == 1
    calibration = labelled("train", data.max_train) if thresholded and "train" in tables else None
    read = [*scored, "train"] if calibration else scored
    fingerprints = {split: tables[split].fingerprint for split in read}
    return [
        HeuristicQuestion(split, split, task, heuristic, asked[split], calibration, fingerprints) for split in scored
    ]


def find_tables(task: Task, data: ConfigDict) -> dict[str, Table]:
    """Those that are scored, by split, and "train", if there is one: the user's own, or the official release's.

    Of a benchmark that keeps its test labels to itself, the validation rows are scored.
    """
    own = {split: data[split] for split in ("test", "train") if data[split]}
    if own and "test" not in own or not (own or task.files or task.addresses):
        raise UserError(
            f"data.test is missing: the address of the examples of {task.name}, file:PATH (csv, tsv, jsonl, json)."
        )
    addresses = own or task.tables(data.folder)
    wanted = "valid" if task.submissions and not own else "test"
    scored = [split for split in addresses if split.startswith(wanted)]
    if not scored:
        raise UserError(
            f"data.folder={data.folder}: the test files of {task.name} are not there: "
            f"{', '.join(name for split, name in task.files.items() if split.startswith(wanted))}."
        )
    skip = data.skip_bad_rows or task.skip_bad_rows
    return {
        split: open_table(
            addresses[split],
            encoding=data.encoding,
            header=None if own else task.headers.get(split),
            skip_bad_rows=skip,
        )
        for split in (*scored, *({"train"} & addresses.keys()))
    }
