"""Prediction: a table without labels in; what a fine-tuned model says of each of its rows out."""

import dataclasses
import functools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from gpt_jax import configuration
from gpt_jax.data.tables import open_table
from gpt_jax.disk import write_atomically
from gpt_jax.errors import UserError, did_you_mean
from gpt_jax.models.config import ModelConfig
from gpt_jax.models.presets import adapt
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.parallel.runtime import announce, do_on_main_process, is_main_process
from gpt_jax.progress import batch_progress
from gpt_jax.runs.aligning import scored_answers
from gpt_jax.runs.pretrained import Pretrained, open_pretrained
from gpt_jax.runs.problem import Problem, Split, answer_of, encoded_split, make_predict, named_columns, task_of
from gpt_jax.runs.recipe import check_batch, check_config
from gpt_jax.runs.workdir import environment, open_workdir
from gpt_jax.tasks.examples import Example, MultipleChoice
from gpt_jax.tasks.reading import check_named_answers, read_examples
from gpt_jax.tasks.registry import TASKS
from gpt_jax.tasks.task import Task
from gpt_jax.text.tokenizer import Tokenizer
from gpt_jax.weights.tensors import Checkpoint

FORMATS = ("jsonl", "glue", "answers")


def run(config: ConfigDict, workdir: Path) -> dict[str, dict[str, Any]]:
    """Predicts the rows of `config.data.table`, or of GLUE's test sets, with the model at `config.model.path`.

    Returns:
      {split: {label: how many rows}}; of scores {split: {"lowest", "mean", "highest"}}.

    Raises:
      UserError: for everything that the caller can mend; nothing is written then.
    """
    if config.format == "answers":
        return scored_answers.run(config, workdir)
    check(config)
    mesh = make_mesh(config.mesh)
    check_batch(config.batch_size, mesh, field="batch_size")
    source = open_fine_tuned(config.model.path)
    model = adapt(source.config, context_length=config.model.context_length, compute_dtype=config.model.compute_dtype)
    with open_workdir(workdir):
        do_on_main_process(lambda: check_config(config, workdir))
        problem = open_tables(config, source, model)
        do_on_main_process(
            lambda: configuration.check_same(
                workdir, "data.json", problem.facts, what="model or table (they have changed since the run began)"
            )
        )
        params = source.parameters_with_head(mesh, model, outputs=problem.answer.outputs)
        count = sum(len(split.examples) for split in problem.splits.values())
        announce(f"{problem.task.name}: {count:,} rows, by {source.path}, step {source.step}; writing to {workdir}")
        watch = functools.partial(batch_progress, enabled=is_main_process())
        predict = make_predict(problem.answer, model, mesh, config.batch_size, watch)
        outputs = {name: predict(params, split.encoded) for name, split in problem.splits.items()}
        do_on_main_process(lambda: record(config, problem, outputs, workdir))
        return report(problem, outputs)


# --- what is asked


def check(config: ConfigDict) -> None:
    """Raises UserError for what can be refused before any work."""
    data = config.data
    if config.format not in FORMATS:
        raise UserError(
            f"format={config.format!r}: expected one of {', '.join(FORMATS)}.{did_you_mean(config.format, FORMATS)}"
        )
    if config.model.path is None:
        raise UserError(
            "model is missing: --config=configs/predict.py:FORMAT,model=WORKDIR,table=ADDRESS, the workdir of a "
            "fine-tuning run."
        )
    if data.table and data.folder:
        raise UserError("data.table and data.folder: expected one of them; folder takes the test sets of GLUE's task.")
    if config.format == "jsonl" and not data.table:
        also = " (data.folder goes with the format glue)" if data.folder else ""
        raise UserError(
            f"data.table is missing{also}: the address of the rows to predict, file:PATH (csv, tsv, jsonl, json)."
        )
    if config.format == "glue" and not (data.table or data.folder):
        raise UserError(
            "data.folder is missing: that of the task's official release, whose test sets are predicted; or data.table."
        )
    if config.format == "glue" and data.skip_bad_rows:
        raise UserError("data.skip_bad_rows: a submission to GLUE must have every row; leave it False, mend the row.")


# --- the model


def open_fine_tuned(path: str) -> Pretrained:
    """What stands at `path`, with the step that is to be read.

    Raises:
      UserError: when it is no workdir of a fine-tuning run, or none of its epochs has ended.
    """
    source = open_pretrained(path)
    if not source.fine_tuned:
        ours = not isinstance(source.source, Checkpoint)
        what = f"the workdir of a {source.recorded.get('run')} run" if ours else "other people's weights"
        raise UserError(
            f"model={path}: {what}, and a prediction needs the workdir of a fine-tuning run. Make one: "
            f"--config=configs/finetune.py:TASK,init_from={path}."
        )
    return dataclasses.replace(source, step=source.chosen_step)


def fine_tuned_task(source: Pretrained, columns: dict[str, str]) -> tuple[Task, Tokenizer]:
    """The task that the model learnt, its columns called as `columns` says or else as they were then; its tokenizer.

    Raises:
      UserError: a file of the workdir is missing or not its own; a column for a role that the task does not have.
    """
    path = source.source.parent / "data.json"
    try:
        facts = json.loads(path.read_text())
        labels, fingerprint = tuple(facts["labels"]), facts["tokenizer"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path}: does not say which labels the model learnt ({error!r}). Restore it.") from None
    tokenizer = source.tokenizer()
    if tokenizer.fingerprint != fingerprint:
        raise UserError(
            f"{source.tokenizer_path} is not the tokenizer that {source.path} was fine-tuned with. Restore it."
        )
    task = task_of(ConfigDict(source.recorded["data"]))
    # Rows need no id, even where those of the fine-tuning had to have one.
    task = dataclasses.replace(task, labels=labels, required=task.required - {"id"})
    return task.with_columns(columns), tokenizer


# --- the table


def open_tables(config: ConfigDict, source: Pretrained, model: ModelConfig) -> Problem:
    """Reads the rows to predict, as the model was taught to read its task.

    Raises:
      UserError: for what is wrong with the model's workdir, the tables or their rows.
    """
    data, recorded = config.data, ConfigDict(source.recorded)
    task, tokenizer = fine_tuned_task(source, named_columns(data))
    answer = answer_of(task, recorded.objective.score)
    splits, fingerprints = {}, {}
    for name, address in addresses(config, task).items():
        table = open_table(address, encoding=data.encoding, skip_bad_rows=data.skip_bad_rows)
        reading = read_examples(
            table,
            task,
            labelled=False,
            skip_bad_rows=data.skip_bad_rows,
            max_answers=data.max_answers or recorded.data.max_answers,
        )
        if skipped := reading.bad + table.skipped:
            announce(f"{address}: {skipped:,} bad rows are left out")
        check_named_answers(reading.examples, task)
        splits[name], _ = encoded_split(name, reading.examples, answer, tokenizer, model.context_length)
        fingerprints[name] = table.fingerprint
    facts = {
        "task": task.name, "labels": list(task.labels), "step": source.step, "tokenizer": tokenizer.fingerprint,
        "tables": fingerprints, "examples": {name: len(split.examples) for name, split in splits.items()},
    }  # fmt: skip
    return Problem(task, answer, tokenizer, splits, facts)


def addresses(config: ConfigDict, task: Task) -> dict[str, str]:
    """Split -> address of the tables to predict; a table of one's own is the split "table", unless it is GLUE's.

    Raises:
      UserError: when GLUE does not have the task, or it is not clear which of its tables this is.
    """
    if config.format == "jsonl":
        return {"table": config.data.table}
    if not task.submissions:
        names = ", ".join(name for name, one in TASKS.items() if one.submissions)
        raise UserError(f"format=glue: {config.model.path} learnt {task.name}, which is none of GLUE's: {names}.")
    if config.data.folder:
        return task.submission_tables(config.data.folder)
    if len(task.submissions) > 1:
        raise UserError(
            f"format=glue: {task.name} is submitted in {len(task.submissions)} files, "
            f"{', '.join(task.submissions.values())}, one for each test set. Name the folder that holds both instead "
            "of a table: folder=PATH."
        )
    return dict.fromkeys(task.submissions, config.data.table)


# --- what is left


def record(config: ConfigDict, problem: Problem, outputs: dict[str, np.ndarray], workdir: Path) -> None:
    """Writes the predictions, each file whole or not at all, and what they were made of."""
    configuration.write_json(workdir / "data.json", problem.facts)
    configuration.write_json(workdir / "environment.json", environment())
    configuration.write_json(workdir / "config.json", configuration.as_json(config))
    lines = []
    for name, split in problem.splits.items():
        which = {"split": name} if len(problem.splits) > 1 else {}
        lines += [json.dumps(which | row) + "\n" for row in predictions(problem, split, outputs[name])]
    files = {"predictions.jsonl": "".join(lines)}
    if config.format == "glue":
        for name, split in problem.splits.items():
            files[problem.task.submissions[name]] = submission(problem, split, outputs[name])
    for name, text in files.items():
        write_atomically(workdir / name, text.encode())
        print(f"written: {workdir / name}")


def predictions(problem: Problem, split: Split, outputs: np.ndarray) -> list[dict[str, Any]]:
    """An object for each row: `id`, and its `score`, or its `label` with the `probabilities` of all."""
    labels, said = problem.task.labels, problem.answer.of(outputs)
    if not labels:
        return [{"id": row.id, "score": shortest(score)} for row, score in zip(split.examples, said, strict=True)]
    return [
        {
            "id": row.id,
            "label": labels[number],
            "probabilities": {label: shortest(p) for label, p in zip(names_of(row, labels), own, strict=False)},
        }
        for row, number, own in zip(split.examples, said, outputs, strict=True)
    ]


def names_of(example: Example, labels: tuple[str, ...]) -> tuple[str, ...]:
    """The labels that an example may get: of multiple choice, the names of the answers that it has."""
    return labels[: len(example.inputs.answers)] if isinstance(example.inputs, MultipleChoice) else labels


def shortest(value: np.floating) -> float:
    """The number whose digits are those that float32 has, so that it is written with no more."""
    return float(str(np.float32(value)))


def submission(problem: Problem, split: Split, outputs: np.ndarray) -> str:
    """The table that GLUE's server takes, labels as its release writes them."""
    task, said = problem.task, problem.answer.of(outputs)
    if task.labels:
        written = [task.submission_label(task.labels[number]) for number in said]
    else:
        written = [f"{score:.3f}" for score in np.clip(said, *task.score_range)]
    rows = [f"{example.id}\t{word}\n" for example, word in zip(split.examples, written, strict=True)]
    return "index\tprediction\n" + "".join(rows)


def report(problem: Problem, outputs: dict[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """How often each label was given, or where the scores lie, printed once and returned; by split."""
    found = {}
    for name in problem.splits:
        said, labels = problem.answer.of(outputs[name]), problem.task.labels
        if labels:
            counts = Counter(said.tolist())
            found[name] = {label: counts[number] for number, label in enumerate(labels)}
        else:
            found[name] = {"lowest": float(said.min()), "mean": float(said.mean()), "highest": float(said.max())}
        if is_main_process():
            words = (f"{what} {x:,}" if isinstance(x, int) else f"{what} {x:.3f}" for what, x in found[name].items())
            print(f"{name}: {', '.join(words)}")
    return found
