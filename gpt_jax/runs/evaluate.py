"""Evaluation without fine-tuning: what a language model says of tasks, over its checkpoints (GPT-1, section 5)."""

import contextlib
import dataclasses
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from gpt_jax import configuration
from gpt_jax.data.example_batches import ExampleSet, evaluation_batches
from gpt_jax.data.tables import Table, open_table
from gpt_jax.disk import write_atomically
from gpt_jax.errors import UserError
from gpt_jax.inference.continuations import compile_continuation_scorer
from gpt_jax.models import decoder
from gpt_jax.models.config import ModelConfig
from gpt_jax.models.presets import adapt
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.parallel.rules import sharding
from gpt_jax.parallel.runtime import announce, do_on_main_process, is_main_process
from gpt_jax.progress import StepProgress, clock
from gpt_jax.runs.pretrained import Pretrained, abstract_parameters, open_pretrained
from gpt_jax.runs.problem import sample
from gpt_jax.runs.workdir import environment, open_workdir
from gpt_jax.tasks.examples import Example
from gpt_jax.tasks.metrics import compute_metrics
from gpt_jax.tasks.prompts import Heuristic, Prompts, above, best_threshold, encode_prompts, heuristic_of, likeliest
from gpt_jax.tasks.reading import check_named_answers, read_examples, with_labels_of
from gpt_jax.tasks.registry import TASKS, ZERO_SHOT_TASKS, find_task
from gpt_jax.tasks.task import Task
from gpt_jax.tasks.zero_shot_report import Line, write_zero_shot_report
from gpt_jax.text.tokenizer import Tokenizer
from gpt_jax.training.metrics_log import read_rows

FREE_TO_CHANGE = (*configuration.FREE_TO_CHANGE, "batch_size")
Row = dict[str, Any]


def run(config: ConfigDict, workdir: Path) -> dict[str, dict[str, float]]:
    """Evaluates the checkpoints that `config` names, or those that an earlier start in `workdir` has not done.

    Returns:
      {split: {metric: value}} of the newest checkpoint; of several tasks, {task/split: ...}.

    Raises:
      UserError: for everything that the caller can mend.
    """
    began = time.monotonic()
    checkpoints, model, tokenizer, origin = resolve(config)
    mesh = make_mesh(config.mesh)
    with open_workdir(workdir):
        current = configuration.as_json(config)
        do_on_main_process(
            lambda: configuration.check_same(workdir, "config.json", current, what="config", free=FREE_TO_CHANGE)
        )
        questions = open_questions(config, tokenizer, model.context_length)
        do_on_main_process(lambda: record(current, questions, tokenizer, origin, workdir))
        announce(
            f"{', '.join(f'{len(q.examples):,} examples of {q.task.name} {q.split}' for q in questions)}; "
            f"{len(checkpoints)} checkpoints of {decoder.parameter_count(model):,} parameters; writing to {workdir}"
        )
        rows = evaluate(config, checkpoints, questions, model, mesh, workdir)
        return finish(config, checkpoints, questions, rows, workdir, began)


# --- what is evaluated


@dataclasses.dataclass(frozen=True)
class Moment:
    """Weights at one moment of training, maybe its end.

    Attributes:
      step, tokens: seen until then; None where weights do not say.
      load: (config, mesh) -> parameters.
    """

    step: int | None
    tokens: int | None
    load: Callable[[ModelConfig, jax.sharding.Mesh], dict]

    def __str__(self) -> str:
        return "the weights" if self.step is None else f"step {self.step:,}"


def resolve(config: ConfigDict) -> tuple[list[Moment], ModelConfig, Tokenizer, dict[str, Any]]:
    """The checkpoints, the oldest first; the model that they are of; its tokenizer; and how they came about.

    Raises:
      UserError: when there are none, or fields do not go with the weights.
    """
    if config.source is None:
        raise UserError("model= is missing: a workdir, a Hugging Face folder, a GGUF file or OpenAI's release.")
    if config.batch_size < 1:
        raise UserError(f"batch_size={config.batch_size}: expected at least 1.")
    if config.checkpoints not in ("one", "all"):
        raise UserError(f"checkpoints={config.checkpoints!r}: expected one or all; model=WORKDIR/checkpoints/STEP.")
    pretrained = open_pretrained(config.source)
    model = adapt(pretrained.config, **config.model)
    if config.checkpoints == "all":
        checkpoints = kept_checkpoints(pretrained)
    elif isinstance(pretrained.source, Path):
        step = pretrained.chosen_step
        checkpoints = [checkpoint_of(pretrained, newest_step(pretrained.source) if step is None else step)]
    else:
        checkpoints = [Moment(None, None, lambda model, mesh: pretrained.parameters(mesh, model))]
    # The same config and seed train the same weights; of other people's the model is all that is known.
    origin = configuration.flatten(pretrained.recorded) or dataclasses.asdict(pretrained.config)
    origin = {name: value for name, value in origin.items() if not name.startswith(configuration.FREE_TO_CHANGE)}
    return checkpoints, model, pretrained.tokenizer(config.tokenizer.path), origin


def kept_checkpoints(pretrained: Pretrained) -> list[Moment]:
    """Those of a workdir, and before them the weights that pretraining drew, which are drawn again.

    UserError: no workdir, or no checkpoint in it.
    """
    if not isinstance(pretrained.source, Path) or pretrained.path != pretrained.source.parent:
        raise UserError(
            f"checkpoints=all: {pretrained.path} is no workdir of a pretraining run. Name one as model=DIR."
        )
    newest_step(pretrained.source)
    steps = sorted(int(path.name) for path in pretrained.source.iterdir() if path.name.isdigit())
    checkpoints = [checkpoint_of(pretrained, step) for step in steps]
    recorded = pretrained.recorded
    if recorded.get("run") != "pretrain" or recorded.get("init_from") or steps[0] == 0:
        return checkpoints

    def draw(model: ModelConfig, mesh: jax.sharding.Mesh) -> dict:
        shardings = jax.tree.map(lambda x: x.sharding, abstract_parameters(model, mesh))
        with jax.set_mesh(mesh):
            key = jax.random.key(recorded["seed"])
            return jax.jit(lambda key: decoder.init(model, key), out_shardings=shardings)(key)

    return [Moment(0, 0, draw), *checkpoints]


def checkpoint_of(pretrained: Pretrained, step: int) -> Moment:
    """The checkpoint of `step` in the workdir of `pretrained`."""
    own = dataclasses.replace(pretrained, step=step)
    recorded, tokens = pretrained.recorded, None
    if recorded.get("run") == "pretrain":
        tokens = step * recorded["train"]["batch_size"] * recorded["data"]["sequence_length"]
    return Moment(step, tokens, lambda model, mesh: own.parameters(mesh, model))


def newest_step(folder: Path) -> int:
    """The last of the checkpoints in `folder`. UserError: there is none."""
    steps = [int(path.name) for path in folder.iterdir() if path.name.isdigit()]
    if not steps:
        raise UserError(f"{folder}: no checkpoint is there yet. Wait for the run's first, or name other weights.")
    return max(steps)


# --- what it is asked


@dataclasses.dataclass(frozen=True)
class Texts(ExampleSet):
    """Texts of which the tokens from `starts` on are scored, one an example of an `ExampleSet`."""

    starts: np.ndarray = dataclasses.field(kw_only=True)

    @functools.cached_property
    def most_scored(self) -> int:
        """The tokens of the longest continuation."""
        return int((self.lengths - self.starts).max())

    def batch(self, indices: np.ndarray, weights: np.ndarray, length: int) -> dict[str, np.ndarray]:
        """The texts `indices` [R] as arrays: what `compile_continuation_scorer` takes, with K = `most_scored`."""
        tokens_RT = super().batch(indices, weights, length)["tokens"][:, 0]
        targets_RK = self.starts[indices][:, None] + np.arange(min(self.most_scored, length - 1))
        scored_RK = targets_RK < self.lengths[indices][:, None]
        targets_RK = np.minimum(targets_RK, length - 1)
        return {
            "tokens": tokens_RT,
            "places": (targets_RK - 1).astype(np.int32),
            "targets": np.take_along_axis(tokens_RT, targets_RK, axis=1),
            "mask": scored_RK.astype(np.float32),
            "weights": np.asarray(weights, np.float32),
            "index": np.asarray(indices, np.int32),
        }


@dataclasses.dataclass(frozen=True)
class Prompted:
    """Labelled examples, and their candidates as the model reads them."""

    examples: list[Example]
    prompts: Prompts
    texts: Texts

    @property
    def targets(self) -> np.ndarray:
        """int [examples]."""
        return np.array([example.target for example in self.examples])


@dataclasses.dataclass(frozen=True)
class Question:
    """One split of one task.

    Attributes:
      name: how scores.json calls it.
      calibration: rows on which a threshold is found; None: none are given, or there is no threshold.
    """

    name: str
    split: str
    task: Task
    heuristic: Heuristic
    asked: Prompted
    calibration: Prompted | None
    tables: dict[str, str]  # split -> fingerprint

    @property
    def examples(self) -> list[Example]:
        """Those that are scored."""
        return self.asked.examples

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
        if self.task.metrics[0] == "matthews":
            return 0.0
        return float(np.mean(1 / np.maximum(self.asked.prompts.candidates, 2)))


def open_questions(config: ConfigDict, tokenizer: Tokenizer, context_length: int) -> list[Question]:
    """Reads the tables of every task. UserError: for what is wrong with a task, its tables or the tokenizer."""
    if "task" in config.data:
        return open_task(config.data, tokenizer, context_length)
    questions = []
    for field, data in config.data.items():
        try:
            own = open_task(data, tokenizer, context_length)
        except UserError as error:
            raise UserError(f"{error} (of several tasks, the fields of this one stand in data.{field}.)") from None
        questions += [dataclasses.replace(one, name=f"{data.task}/{one.split}") for one in own]
    return questions


def open_task(data: ConfigDict, tokenizer: Tokenizer, context_length: int) -> list[Question]:
    """One task's splits, with their labels."""
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

    def prompted(split: str, most: int) -> Prompted:
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
        sequences = [(sequence,) for sequence in prompts.sequences]
        texts = Texts(sequences, None, tokenizer.specials.pad, context_length, starts=prompts.starts)
        return Prompted(examples, prompts, texts)

    asked = {split: prompted(split, data.max_test) for split in scored}
    thresholded = next(iter(asked.values())).prompts.candidates[0] == 1
    calibration = prompted("train", data.max_train) if thresholded and "train" in tables else None
    read = [*scored, "train"] if calibration else scored
    fingerprints = {split: tables[split].fingerprint for split in read}
    return [Question(split, split, task, heuristic, asked[split], calibration, fingerprints) for split in scored]


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


def record(
    config: dict[str, Any], questions: list[Question], tokenizer: Tokenizer, origin: dict[str, Any], workdir: Path
) -> None:
    """Writes what the run is made of, now that nothing is left to refuse; UserError where its data are others."""
    facts = {"tokenizer": tokenizer.fingerprint, "weights": origin} | {
        question.name: {
            "tables": question.tables,
            "labels": list(question.task.labels),
            "examples": len(question.examples),
            "truncated": question.asked.prompts.truncated,
        }
        for question in questions
    }
    configuration.check_same(workdir, "data.json", facts, what="model or data (they have changed since the run began)")
    configuration.write_json(workdir / "data.json", facts)
    configuration.write_json(workdir / "environment.json", environment())
    configuration.write_json(workdir / "config.json", config)


# --- asking


def evaluate(
    config: ConfigDict,
    checkpoints: list[Moment],
    questions: list[Question],
    model: ModelConfig,
    mesh: jax.sharding.Mesh,
    workdir: Path,
) -> list[Row]:
    """Asks every checkpoint that evaluations.jsonl does not have yet; returns all its rows."""
    rows = read_rows(workdir / "evaluations.jsonl")
    rows = [row for row in rows if row["step"] is not None]  # weights without a step may have become others
    done = {row["step"] for row in rows}
    missing = [checkpoint for checkpoint in checkpoints if checkpoint.step not in done]
    prompted = [one for question in questions for one in (question.asked, question.calibration) if one]
    batches = sum(-(-len(one.texts) // config.batch_size) for one in prompted)
    score = compile_continuation_scorer(model, mesh)
    along_rows = sharding((config.batch_size,), ("batch",), mesh)
    progress = StepProgress(total=len(missing) * batches, start=0, main_process=is_main_process())
    with contextlib.closing(progress):
        steps = iter(range(1, len(missing) * batches + 1))

        def ask(params: dict, one: Prompted) -> np.ndarray:
            """The log-probability of every continuation, float64 [texts]."""
            found = np.full(len(one.texts), np.nan)
            own = evaluation_batches(one.texts, batch_size=config.batch_size, sharding=along_rows)
            for index, values in score(params, own):
                found[index] = values
                progress.update(next(steps), loss=-values.sum() / one.prompts.scored_tokens[index].sum())
            return found

        for checkpoint in missing:
            params = checkpoint.load(model, mesh)
            found = [answer(question, functools.partial(ask, params)) for question in questions]
            own_rows = [row_of(checkpoint, question, a) for question, a in zip(questions, found, strict=True)]
            if is_main_process():
                if checkpoint is checkpoints[-1]:  # before its rows: they say that it is done
                    write_lines(workdir / "predictions.jsonl", predictions(questions, found))
                rows = sorted([*rows, *own_rows], key=lambda row: row["step"] or 0)
                write_lines(workdir / "evaluations.jsonl", rows)
            scores = [
                f"{q.task.name} {q.split} {row[q.task.metrics[0]]:.4f}"
                for q, row in zip(questions, own_rows, strict=True)
            ]
            progress.say(f"{checkpoint}: {', '.join(scores)}")
            del params  # before the next checkpoint's are read
    return rows


@dataclasses.dataclass(frozen=True)
class Answers:
    """What a checkpoint says: int [examples], by scores [candidates] of each, above a threshold where there is one."""

    labels: np.ndarray
    scores: list[np.ndarray]
    threshold: float | None


def answer(question: Question, ask: Callable[[Prompted], np.ndarray]) -> Answers:
    """The answers to `question`.

    Args:
      ask: examples -> the log-probabilities of all their continuations.
    """
    scores = question.heuristic.scores(ask(question.asked), question.asked.prompts)
    if not question.thresholded:
        return Answers(likeliest(scores), scores, None)
    if question.calibration is None:
        threshold = float(np.median(np.concatenate(scores)))
    else:
        own = question.heuristic.scores(ask(question.calibration), question.calibration.prompts)
        threshold = best_threshold(own, question.calibration.targets)
    return Answers(above(scores, threshold), scores, threshold)


def row_of(checkpoint: Moment, question: Question, answers: Answers) -> Row:
    """A row of evaluations.jsonl; `above_chance` is the first metric's share of the way from chance to perfect."""
    task = question.task
    metrics = compute_metrics(task.metrics, answers.labels, question.asked.targets, num_labels=len(task.labels))
    chance = question.chance
    row = {"step": checkpoint.step, "tokens": checkpoint.tokens, "task": task.name, "split": question.split} | metrics
    row |= {"chance": chance, "above_chance": (metrics[task.metrics[0]] - chance) / (1 - chance)}
    return row if answers.threshold is None else row | {"threshold": answers.threshold}


def predictions(questions: list[Question], found: list[Answers]) -> list[Row]:
    """A row for each example."""
    return [
        {
            "task": question.task.name,
            "split": question.split,
            "id": example.id,
            "prediction": question.task.labels[label],
            "label": question.task.labels[example.target],
            "scores": own.tolist(),
        }
        for question, answers in zip(questions, found, strict=True)
        for example, label, own in zip(question.examples, answers.labels, answers.scores, strict=True)
    ]


def write_lines(path: Path, rows: list[Row]) -> None:
    """A file of JSON objects, whole or not at all."""
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def finish(
    config: ConfigDict,
    checkpoints: list[Moment],
    questions: list[Question],
    rows: list[Row],
    workdir: Path,
    began: float,
) -> dict[str, dict[str, float]]:
    """Writes scores.json, of the newest checkpoint, and the report."""
    if not is_main_process():
        return {}
    newest = {(row["task"], row["split"]): row for row in rows if row["step"] == checkpoints[-1].step}
    scores = {}
    for question in questions:
        row = newest[question.task.name, question.split]
        scores[question.name] = {metric: row[metric] for metric in question.task.metrics}
    configuration.write_json(workdir / "scores.json", scores)
    path = write_zero_shot_report(
        workdir,
        model=str(config.source),
        lines=[Line(q.task, q.split, len(q.examples), q.described, q.chance) for q in questions],
        rows=rows,
        config=configuration.as_json(config),
    )
    for name, metrics in scores.items():
        print(f"{name}: " + ", ".join(f"{metric} {value:.4f}" for metric, value in metrics.items()))
    print(f"time of this start: {clock(time.monotonic() - began)}")
    print(f"report: {path}")
    return scores
