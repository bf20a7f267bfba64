"""A fine-tuning problem: a task's tables read, its examples as the model reads them, and how its outputs answer."""

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from ml_collections import ConfigDict

from gpt_jax.data.example_batches import ExampleSet, evaluation_batches
from gpt_jax.data.tables import Table, open_table, split_held_out
from gpt_jax.errors import UserError
from gpt_jax.inference.prediction import Batch, compile_predictor
from gpt_jax.models.config import ModelConfig
from gpt_jax.models.heads import Combination
from gpt_jax.parallel.rules import sharding
from gpt_jax.parallel.runtime import announce
from gpt_jax.tasks.examples import Example
from gpt_jax.tasks.metrics import compute_metrics
from gpt_jax.tasks.reading import check_different_targets, read_examples, with_labels_of
from gpt_jax.tasks.registry import find_task
from gpt_jax.tasks.scores import expected_score, soft_score_targets
from gpt_jax.tasks.task import Task
from gpt_jax.tasks.transforms import encode
from gpt_jax.text.tokenizer import Tokenizer
from gpt_jax.training.losses import Target

T = TypeVar("T")
COMBINATIONS: dict[str, Combination] = {
    "classification": "single", "entailment": "single", "similarity": "sum", "multiple_choice": "choice",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Split:
    """The examples of one split, and as the model reads them."""

    examples: list[Example]
    encoded: ExampleSet


@dataclasses.dataclass(frozen=True)
class Answer:
    """How the model's outputs answer an example of a task.

    Attributes:
      combination: how the sequences of an example become one prediction.
      outputs: O, the width of the head.
    """

    combination: Combination
    target: Target
    outputs: int
    score_range: tuple[float, float] | None = None

    def of(self, outputs: np.ndarray) -> np.ndarray:
        """Label numbers [n], or scores [n], of a predictor's outputs [n, O]."""
        if self.target == "classes":
            return outputs.argmax(axis=1)
        low, high = self.score_range
        if self.target == "score":
            return low + (high - low) * outputs[:, 0]
        return expected_score(outputs, int(low))

    def loss(self, outputs: np.ndarray, targets: np.ndarray) -> float:
        """L2, the mean over examples: nats of the right answers, or squared error."""
        if self.target == "score":
            return float(np.mean((outputs[:, 0] - targets) ** 2))
        nats = -np.log(np.maximum(outputs, np.finfo(np.float32).tiny))
        if self.target == "classes":
            return float(np.mean(nats[np.arange(len(nats)), targets]))
        return float(np.mean(np.sum(targets * nats, axis=1)))


def answer_of(task: Task, score: Target) -> Answer:
    """The answer of `task`, whose labels are known; `score`: what the head learns where they are numbers."""
    combination = COMBINATIONS[task.kind]
    if not task.score_range:
        return Answer(combination, "classes", 1 if combination == "choice" else len(task.labels))
    low, high = task.score_range
    return Answer(combination, score, 1 if score == "score" else int(high - low) + 1, (low, high))


@dataclasses.dataclass(frozen=True)
class Problem:
    """A task and its examples, read and encoded.

    Attributes:
      facts: what the workdir keeps of it, to notice data that have changed.
    """

    task: Task
    answer: Answer
    tokenizer: Tokenizer
    splits: dict[str, Split]
    facts: dict[str, Any]


def open_problem(config: ConfigDict, tokenizer: Tokenizer) -> Problem:
    """Reads the tables, and turns their rows into token sequences.

    Raises:
      UserError: for what is wrong with the task, the tables or the tokenizer.
    """
    data = config.data
    task, tables, unlabelled = find_tables(config)
    task = with_labels_of(task, tables["train"])
    skip = data.skip_bad_rows or task.skip_bad_rows
    examples = {}
    for split in (split for split in tables if split not in unlabelled):
        reading = read_examples(tables[split], task, skip_bad_rows=skip, max_answers=data.max_answers)
        examples[split] = reading.examples
        dropped = {"unlabelled": reading.unlabelled, "bad": reading.bad + tables[split].skipped}
        for what, count in dropped.items():
            if count:
                announce(f"{split}: {count} {what} rows are left out")
    if "valid" not in examples:
        examples["train"], examples["valid"] = split_held_out(
            examples["train"], lambda example: example.inputs.shared, data.validation_fraction
        )
    examples["train"] = sample(examples["train"], data.max_train)
    examples["valid"] = sample(examples["valid"], data.max_valid)
    check_different_targets(examples["train"], task)
    answer = answer_of(task, config.objective.score)
    splits, truncated = {}, {}
    for split, own in examples.items():
        splits[split], truncated[split] = encoded_split(split, own, answer, tokenizer, config.model.context_length)
    facts = {
        "task": task.name, "labels": list(task.labels), "metrics": list(task.metrics),
        "tokenizer": tokenizer.fingerprint, "truncated": truncated,
        "tables": {split: tables[split].fingerprint for split in tables if split not in unlabelled},
        "examples": {split: len(own_examples) for split, own_examples in examples.items()},
    }  # fmt: skip
    return Problem(task, answer, tokenizer, splits, facts)


def task_of(data: ConfigDict) -> Task:
    """The task that `config.data` names, its labels as far as they are named.

    Raises:
      UserError: an unknown task, column role or metric.
    """
    return find_task(
        data.task,
        columns=named_columns(data),
        labels=data.labels,
        score_range=tuple(data.score_range) or None,
        metrics=data.metrics,
    )


def named_columns(data: ConfigDict) -> dict[str, str]:
    """Role -> column, of the roles that `data.columns` names one for."""
    return {role: name for role, name in data.columns.items() if name is not None}


def find_tables(config: ConfigDict) -> tuple[Task, dict[str, Table], set[str]]:
    """The task that `config.data` names, its tables by split, and the splits whose labels were never published.

    Raises:
      UserError: an unknown task or column role, a folder or file that is not there.
    """
    data = config.data
    task = task_of(data)
    own = {split: data[split] for split in ("train", "valid", "test") if data[split]}
    addresses = own or task.tables(data.folder)
    if "train" not in addresses:
        raise UserError("data.train is missing: the address of the table of training examples.")
    tables = {
        split: open_table(
            address,
            encoding=data.encoding,
            header=None if own else task.headers.get(split),
            skip_bad_rows=data.skip_bad_rows or task.skip_bad_rows,
        )
        for split, address in addresses.items()
    }
    # GLUE keeps the labels of its test sets to itself.
    unlabelled = {split for split in tables if split.startswith("test") and task.submissions and not own}
    return task, tables, unlabelled


def encoded_split(
    name: str, examples: list[Example], answer: Answer, tokenizer: Tokenizer, context_length: int
) -> tuple[Split, int]:
    """The examples as the model reads them, and how many texts were cut to fit; examples without targets stay so."""
    encoded = encode(examples, tokenizer, context_length)
    if encoded.truncated_parts:
        announce(f"{name}: {encoded.truncated_parts:,} of {encoded.parts:,} texts are cut to fit the context")
    targets = None if examples[0].target is None else targets_of(examples, answer)
    own = ExampleSet(encoded.sequences, targets, tokenizer.specials.pad, context_length)
    return Split(examples, own), encoded.truncated_parts


def sample(examples: list[T], most: int) -> list[T]:
    """At most `most` of the examples, the same whatever the seed of the run; 0: all."""
    if not most or len(examples) <= most:
        return examples
    chosen = np.random.RandomState(0).permutation(len(examples))[:most]
    return [examples[index] for index in sorted(chosen)]


def targets_of(examples: list[Example], answer: Answer) -> np.ndarray:
    """What the head learns: label numbers [n], scores from 0 to 1 [n], or distributions over whole scores [n, O]."""
    values = np.array([example.target for example in examples])
    if answer.target == "classes":
        return values.astype(np.int32)
    low, high = answer.score_range
    if answer.target == "score":
        return ((values - low) / (high - low)).astype(np.float32)
    return soft_score_targets(values, int(low), int(high))


Predict = Callable[[Any, ExampleSet], np.ndarray]


@functools.lru_cache(maxsize=4)  # runs that differ in their seed alone are compiled once
def make_predict(
    answer: Answer,
    model: ModelConfig,
    mesh: jax.sharding.Mesh,
    batch_size: int,
    watch: Callable[[Iterator[Batch], int], Iterator[Batch]] = lambda batches, total: batches,
) -> Predict:
    """A function (parameters, examples) -> outputs [n, O]: probabilities, or scores from 0 to 1.

    The parameters are a decoder's and a head's: adapters are merged before.

    Args:
      watch: (batches, their number) -> the batches, shown as they pass.
    """
    predictor = compile_predictor(model, mesh, answer.combination, probabilities=answer.target != "score")
    rows = sharding((batch_size,), ("batch",), mesh)

    def predict(params: Any, examples: ExampleSet) -> np.ndarray:
        batches = evaluation_batches(examples, batch_size=batch_size, sharding=rows)
        return predictor(params, watch(batches, math.ceil(len(examples) / batch_size)), len(examples))

    return predict


def measure(problem: Problem, split: str, outputs: np.ndarray) -> dict[str, float]:
    """`loss` and the task's metrics of a split."""
    truth = np.array([example.target for example in problem.splits[split].examples])
    scores = compute_metrics(
        problem.task.metrics, problem.answer.of(outputs), truth, num_labels=len(problem.task.labels) or None
    )
    return {"loss": problem.answer.loss(outputs, problem.splits[split].encoded.targets)} | scores


def best_step(workdir: Path) -> int:
    """The step of the epoch with the best validation score, the earlier of two equal ones, of a fine-tuning workdir.

    Only epochs whose parameters are saved count: a run that was killed may have evaluated one that is not.

    Raises:
      UserError: when no epoch has been evaluated.
    """
    log = workdir / "metrics.jsonl"
    try:
        metric = json.loads((workdir / "data.json").read_text())["metrics"][0]
        lines = log.read_text().splitlines(keepends=True) if log.exists() else []
        rows = [json.loads(line) for line in lines if line.endswith("\n")]  # a kill may have torn the last
        valid = [row for row in rows if row["split"] == "valid" and (workdir / f"checkpoints/{row['step']}").exists()]
        if not valid:
            raise UserError(f"{workdir}: no epoch of this fine-tuning run has ended yet. Start it again to go on.")
        return min(valid, key=lambda row: (objective(row, metric), row["step"]))["step"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{workdir}: not the workdir of a fine-tuning run that has ended ({error!r}).") from None


def objective(row: dict[str, float], metric: str) -> float:
    """What the best epoch has least of: minus the score; of equal ones the earlier is better."""
    return 1e-12 * row["step"] - row[metric]
