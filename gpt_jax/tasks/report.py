"""`report.md` of a fine-tuning run: scores beside the paper's, learning curves, confusion matrix, worst mistakes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpt_jax.tasks.examples import Example
from gpt_jax.tasks.metrics import confusion_matrix
from gpt_jax.tasks.task import Task

MISTAKES = 12


def write_task_report(
    workdir: Path,
    *,
    task: Task,
    scores: dict[str, dict[str, float]],
    examples: dict[str, Sequence[Example]],
    outputs: dict[str, np.ndarray],
    answers: dict[str, np.ndarray],
    summary: list[tuple[str, str]],
    rows: list[dict[str, Any]],
    config: dict[str, Any],
) -> Path:
    """Writes `report.md` with its pictures into `workdir`; returns its path.

    Args:
      scores: {split: {metric: value}}; examples, outputs [n, O] and answers [n] by split, in the same order.
      summary: (name, value) pairs for the table at the top; rows: of metrics.jsonl.
    """
    shown = "test" if "test" in examples else next(iter(examples))
    lines = [f"# Fine-tuning on {task.name}", "", "| split | metric | score | GPT-1 (paper) |", "|---|---|---|---|"]
    for split, metrics in scores.items():
        for metric in task.metrics:
            paper = task.paper.get(split) if metric == task.metrics[0] else None
            lines.append(f"| {split} | {metric} | {100 * metrics[metric]:.1f} | {'' if paper is None else paper} |")
    lines += ["", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in summary)]
    lines += ["", "## Learning curves", "", "![Loss and score by step](learning.png)"]
    _draw_learning(rows, task, workdir / "learning.png")
    if task.labels and task.kind != "multiple_choice":
        truth = np.array([example.target for example in examples[shown]])
        matrix = confusion_matrix(answers[shown], truth, len(task.labels))
        _draw_confusion(matrix, task.labels, workdir / "confusion.png")
        lines += ["", f"## Confusion on {shown}", "", "![What is true, and what was said](confusion.png)"]
    lines += [
        "",
        f"## The worst mistakes on {shown}",
        "",
        *_mistakes(task, examples[shown], outputs[shown], answers[shown]),
    ]
    lines += ["", "## Config", "", "```json", json.dumps(config, indent=2), "```"]
    path = workdir / "report.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _mistakes(task: Task, examples: Sequence[Example], outputs: np.ndarray, answers: np.ndarray) -> list[str]:
    """The examples that the model was surest about, and wrong; of scores, those it was furthest from."""
    truth = np.array([example.target for example in examples])
    if task.score_range:
        badness = np.abs(answers - truth)
    else:
        badness = np.where(answers == truth, -1.0, outputs[np.arange(len(outputs)), answers])
    lines = []
    for index in np.argsort(-badness, kind="stable")[:MISTAKES]:
        if badness[index] < 0:
            break
        example = examples[index]
        if task.score_range:
            said = f"said {answers[index]:.2f}, true {truth[index]:.2f}"
        elif task.kind == "multiple_choice":
            said = f"said answer {answers[index] + 1} ({badness[index]:.0%} sure), true answer {truth[index] + 1}"
        else:
            said = f"said {task.labels[answers[index]]} ({badness[index]:.0%} sure), true {task.labels[truth[index]]}"
        texts = " / ".join(_short(part) for part in example.inputs.parts if part)
        lines.append(f"- {said} ({_escape(example.id)}): {texts}")
    return lines or ["None."]


def _short(text: str, limit: int = 300) -> str:
    return _escape(text if len(text) <= limit else text[: limit - 1] + "…")


def _escape(text: str) -> str:
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>#|" else c for c in text.replace("\n", " "))


def _draw_learning(rows: list[dict[str, Any]], task: Task, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)  # drawn in memory: no display, no global state
    losses, scores = figure.subplots(1, 2)
    for split, style in (("train", dict(color="0.7", linewidth=0.8)), ("valid", dict(color="C3", marker="o"))):
        points = [(row["step"], row["loss"]) for row in rows if row["split"] == split]
        if points:
            losses.plot(*zip(*points, strict=True), label=f"{split} ({'L3' if split == 'train' else 'L2'})", **style)
    losses.set(xlabel="step", ylabel="loss")
    valid = [row for row in rows if row["split"] == "valid"]
    for metric in task.metrics:
        scores.plot([row["step"] for row in valid], [row[metric] for row in valid], marker="o", label=metric)
    scores.set(xlabel="step", ylabel="validation score")
    for axes in (losses, scores):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    figure.savefig(path, dpi=110)


def _draw_confusion(matrix: np.ndarray, labels: Sequence[str], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    side = 2.5 + 0.6 * len(labels)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="said", ylabel="true", xticks=range(len(labels)), yticks=range(len(labels)))
    axes.set_xticklabels(labels, rotation=45, ha="right")
    axes.set_yticklabels(labels)
    if len(labels) <= 20:
        for (row, column), count in np.ndenumerate(matrix):
            axes.text(
                column, row, count, ha="center", va="center", color="white" if shares[row, column] > 0.5 else "black"
            )
    figure.savefig(path, dpi=110)
