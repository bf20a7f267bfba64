"""`report.md` of an evaluation without fine-tuning: scores over pretraining steps, as a table and a picture."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_jax.tasks.task import Task


@dataclass(frozen=True)
class Line:
    """One line of the picture: a split of a task.

    examples: how many are scored.
    heuristic: how, in words.
    chance: the first metric of guessing.
    """

    task: Task
    split: str
    examples: int
    heuristic: str
    chance: float

    @property
    def title(self) -> str:
        """What the table's column is called."""
        split = "" if self.split == "test" else f" {self.split}"
        return f"{self.task.name}{split} ({self.task.metrics[0]})"

    @property
    def standard_error(self) -> float:
        """Of the first metric's value near chance; a correlation's is 1 / √examples."""
        variance = 1.0 if self.task.metrics[0] == "matthews" else self.chance * (1 - self.chance)
        return math.sqrt(variance / self.examples)


def write_zero_shot_report(
    workdir: Path, *, model: str, lines: list[Line], rows: list[dict[str, Any]], config: dict[str, Any]
) -> Path:
    """Writes `report.md` with `zero_shot.png` into `workdir`; returns its path.

    Args:
      rows: of evaluations.jsonl: step (None where weights do not say), tokens, task, split, metrics, above_chance.
    """
    by_key = {(row["step"], row["task"], row["split"]): row for row in rows}
    checkpoints = list(dict.fromkeys((row["step"], row["tokens"]) for row in rows))
    text = [f"# Without fine-tuning: {model}", "", "Scores times 100, by checkpoint.", ""]
    text += [f"| step | tokens | {' | '.join(line.title for line in lines)} |", "|---" * (2 + len(lines)) + "|"]
    for step, tokens in checkpoints:
        values = [by_key[step, line.task.name, line.split][line.task.metrics[0]] for line in lines]
        cells = [_number(step), _number(tokens), *(f"{100 * value:.1f}" for value in values)]
        text.append(f"| {' | '.join(cells)} |")
    guesses = (f"{100 * line.chance:.1f}" for line in lines)
    text += [f"| | guessing | {' | '.join(guesses)} |", "", "![Scores by pretraining step](zero_shot.png)", ""]
    text += ["| task | split | examples | chance ± one standard error | heuristic |", "|---|---|---|---|---|"]
    for line in lines:
        chance = f"{100 * line.chance:.1f} ± {100 * line.standard_error:.1f}"
        text.append(f"| {line.task.name} | {line.split} | {line.examples:,} | {chance} | {line.heuristic} |")
    text += ["", "## Config", "", "```json", json.dumps(config, indent=2), "```"]
    _draw(lines, by_key, [step for step, _ in checkpoints], workdir / "zero_shot.png")
    path = workdir / "report.md"
    path.write_text("\n".join(text) + "\n", encoding="utf-8")
    return path


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _draw(lines: list[Line], rows: dict[tuple, dict[str, Any]], steps: list[int | None], path: Path) -> None:
    """The plain metric, and how far it is from chance (0) to perfect (1)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)  # drawn in memory: no display, no global state
    plain, relative = figure.subplots(1, 2)
    places = [step or 0 for step in steps]
    for number, line in enumerate(lines):
        own = [rows[step, line.task.name, line.split] for step in steps]
        style = dict(color=f"C{number}", marker="o", markersize=4, label=line.title)
        plain.plot(places, [row[line.task.metrics[0]] for row in own], **style)
        plain.axhline(line.chance, color=f"C{number}", linewidth=0.8, linestyle=":")
        relative.plot(places, [row["above_chance"] for row in own], **style)
    relative.axhline(0, color="0.3", linewidth=0.8)
    plain.set(xlabel="pretraining step", ylabel="score (dotted: chance)")
    relative.set(xlabel="pretraining step", ylabel="share of the way from chance to perfect")
    for axes in (plain, relative):
        axes.grid(alpha=0.3)
    relative.legend()
    figure.savefig(path, dpi=110)
