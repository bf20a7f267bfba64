"""Evaluation without fine-tuning: what language models say of tasks and texts, one after the other in one table."""

import contextlib
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from gpt_jax import configuration
from gpt_jax.disk import write_atomically
from gpt_jax.errors import UserError
from gpt_jax.models import decoder
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.parallel.runtime import announce, do_on_main_process, is_main_process
from gpt_jax.progress import StepProgress, clock
from gpt_jax.runs.heuristic_questions import open_heuristic
from gpt_jax.runs.prompted_questions import open_prompted
from gpt_jax.runs.questions import Answers, Asked, Question, Row
from gpt_jax.runs.subjects import Moment, Subject, open_subjects
from gpt_jax.runs.text_question import open_text
from gpt_jax.runs.workdir import environment, open_workdir
from gpt_jax.tasks.evaluation_report import Line, write_evaluation_report
from gpt_jax.training.metrics_log import read_rows

FREE_TO_CHANGE = (*configuration.FREE_TO_CHANGE, "batch_size")


def run(config: ConfigDict, workdir: Path) -> dict[str, dict[str, float]]:
    """Evaluates the models that `config` names, or those checkpoints that an earlier start in `workdir` has not done.

    Returns:
      {split: {metric: value}} of each model's newest checkpoint; of several tasks {task/split: ...}, of several models
      {model/task/split: ...}.

    Raises:
      UserError: for everything that the caller can mend.
    """
    if config.data.get("task") == "lm-eval":
        from gpt_jax.runs import harness  # the standard harness is an extra

        return harness.run(config, workdir)
    began = time.monotonic()
    subjects = open_subjects(config)
    mesh = make_mesh(config.mesh)
    with open_workdir(workdir):
        current = configuration.as_json(config)
        do_on_main_process(
            lambda: configuration.check_same(workdir, "config.json", current, what="config", free=FREE_TO_CHANGE)
        )
        asked = [(subject, open_questions(config, subject)) for subject in subjects]
        do_on_main_process(lambda: record(current, asked, workdir))
        for subject, questions in asked:
            announce(
                f"{subject.name}: {', '.join(f'{q.examples:,} examples of {title(q)}' for q in questions)}; "
                f"{len(subject.moments)} checkpoints of {decoder.parameter_count(subject.config):,} parameters; "
                f"writing to {workdir}"
            )
        rows = evaluate(config, asked, mesh, workdir)
        return finish(config, asked, rows, workdir, began)


def open_questions(config: ConfigDict, subject: Subject) -> list[Question]:
    """What `subject` is asked. UserError: for what is wrong with a task, its tables or the tokenizer."""
    if "task" in config.data:
        return open_task(config.data, subject, config.seed)
    questions: list[Question] = []
    for field, data in config.data.items():
        try:
            own = open_task(data, subject, config.seed)
        except UserError as error:
            raise UserError(f"{error} (of several tasks, the fields of this one stand in data.{field}.)") from None
        questions += [dataclasses.replace(one, name=f"{data.task}/{one.name}") for one in own]
    return questions


def open_task(data: ConfigDict, subject: Subject, seed: int) -> list[Question]:
    """One task: a text to predict, prompts, or GPT-1's heuristics."""
    if data.task == "text":
        return open_text(data, subject.tokenizer, subject.config.context_length)
    if "shots" in data:
        return open_prompted(data, subject.tokenizer, subject.config.context_length, seed)
    return open_heuristic(data, subject.tokenizer, subject.config.context_length)


def title(question: Question) -> str:
    """What lines about a question call it."""
    shots = "" if question.shots is None else f" {question.shots}-shot"
    return f"{question.task} {question.split}{shots}"


def record(config: dict[str, Any], asked: list[tuple[Subject, list[Question]]], workdir: Path) -> None:
    """Writes what the run is made of, now that nothing is left to refuse; UserError where its data are others."""
    facts: Row = {"tokenizer": asked[0][0].tokenizer.fingerprint, "weights": asked[0][0].origin}
    for subject, questions in asked:
        own = {question.name: question.facts for question in questions}
        if len(asked) == 1:
            facts |= own
        else:
            own |= {"tokenizer": subject.tokenizer.fingerprint, "weights": subject.origin}
            facts |= {f"{subject.path}/{name}": fact for name, fact in own.items()}
    configuration.check_same(workdir, "data.json", facts, what="model or data (they have changed since the run began)")
    configuration.write_json(workdir / "data.json", facts)
    configuration.write_json(workdir / "environment.json", environment())
    configuration.write_json(workdir / "config.json", config)


# --- asking


def evaluate(
    config: ConfigDict, asked: list[tuple[Subject, list[Question]]], mesh: jax.sharding.Mesh, workdir: Path
) -> list[Row]:
    """Asks every model's checkpoints that evaluations.jsonl does not have yet; returns all its rows."""
    rows = read_rows(workdir / "evaluations.jsonl")
    rows = [row for row in rows if row["step"] is not None]  # weights without a step may have become others
    done = {(row.get("model", asked[0][0].name), row["step"]) for row in rows}
    missing = [
        [moment for moment in subject.moments if (subject.name, moment.step) not in done] for subject, _ in asked
    ]
    total = sum(
        len(moments) * question.batches(config.batch_size)
        for moments, (_, questions) in zip(missing, asked, strict=True)
        for question in questions
    )
    progress = StepProgress(total=total, start=0, main_process=is_main_process())
    steps = iter(range(1, total + 1))
    unasked = {subject.name for moments, (subject, _) in zip(missing, asked, strict=True) if not moments}
    predicted = [row for row in read_rows(workdir / "predictions.jsonl") if row.get("model") in unasked]
    with contextlib.closing(progress):
        for moments, (subject, questions) in zip(missing, asked, strict=True):
            several = {"model": subject.name} if len(asked) > 1 else {}
            model = Asked(subject, mesh, config.batch_size, lambda loss: progress.update(next(steps, total), loss=loss))
            for moment in moments:
                model.params = moment.load(subject.config, mesh)
                found = [question.answer(model) for question in questions]
                model.params = None  # before the next are read
                own = [several | row_of(moment, q, answers) for q, answers in zip(questions, found, strict=True)]
                if is_main_process():
                    if moment is subject.moments[-1]:  # before its rows: they say that it is done
                        predicted += predictions(questions, found, several)
                        write_lines(workdir / "predictions.jsonl", predicted)
                    rows = sorted([*rows, *own], key=lambda row: (order(asked, row), row["step"] or 0))
                    write_lines(workdir / "evaluations.jsonl", rows)
                scores = [
                    f"{title(q)} {q.metrics[0]} {row[q.metrics[0]]:.4f}" for q, row in zip(questions, own, strict=True)
                ]
                progress.say(f"{subject.name}, {moment}: {', '.join(scores)}")
    return rows


def order(asked: list[tuple[Subject, list[Question]]], row: Row) -> int:
    """The place of a row's model among those that are evaluated."""
    return [subject.name for subject, _ in asked].index(row.get("model", asked[0][0].name))


def row_of(moment: Moment, question: Question, answers: Answers) -> Row:
    """A row of evaluations.jsonl; `above_chance` is the first metric's share of the way from chance to perfect."""
    row: Row = {"step": moment.step, "tokens": moment.tokens, "task": question.task, "split": question.split}
    row |= ({} if question.shots is None else {"shots": question.shots}) | answers.metrics
    if (chance := question.chance) is not None:
        row |= {"chance": chance, "above_chance": (answers.metrics[question.metrics[0]] - chance) / (1 - chance)}
    return row | answers.facts


def predictions(questions: list[Question], found: list[Answers], several: Row) -> list[Row]:
    """A row for each example."""
    return [
        several
        | {"task": question.task, "split": question.split}
        | ({} if question.shots is None else {"shots": question.shots})
        | row
        for question, answers in zip(questions, found, strict=True)
        for row in answers.predictions
    ]


def write_lines(path: Path, rows: list[Row]) -> None:
    """A file of JSON objects, whole or not at all."""
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def finish(
    config: ConfigDict,
    asked: list[tuple[Subject, list[Question]]],
    rows: list[Row],
    workdir: Path,
    began: float,
) -> dict[str, dict[str, float]]:
    """Writes scores.json, of the newest checkpoints, and the report."""
    if not is_main_process():
        return {}
    scores, lines = {}, []
    for subject, questions in asked:
        for question in questions:
            line = Line(
                subject.name,
                question.task,
                question.split,
                question.shots,
                question.metrics[0],
                question.examples,
                question.described,
                question.chance,
            )
            lines.append(line)
            row = next(row for row in reversed(rows) if line.has(row, only_model=len(asked) == 1))
            name = f"{subject.name}/{question.name}" if len(asked) > 1 else question.name
            known = (metric for name in question.metrics for metric in (name, f"{name}_stderr"))
            scores[name] = {metric: row[metric] for metric in known if row.get(metric) is not None}
    configuration.write_json(workdir / "scores.json", scores)
    path = write_evaluation_report(workdir, lines=lines, rows=rows, config=configuration.as_json(config))
    for name, metrics in scores.items():
        print(f"{name}: " + ", ".join(f"{metric} {value:.4f}" for metric, value in metrics.items()))
    print(f"time of this start: {clock(time.monotonic() - began)}")
    print(f"report: {path}")
    return scores
