"""`report.md` of an evaluation without fine-tuning: scores beside the published ones, curves, the worst examples."""

import json
import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PUBLISHED = Path(__file__).with_name("published_scores.toml")
_AS_THEY_ARE = ("perplexity", "perplexity_per_word", "perplexity_per_byte", "bits_per_byte", "loss")  # not times 100
WORST = 5  # examples shown of each task
_SHOWN = 400  # characters of one

Row = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """One line of the tables: a model asked one split of one task in one way.

    metric: the one that is shown; examples: how many are scored; described: how, in words; chance: of guessing.
    """

    model: str
    task: str
    split: str
    shots: int | str | None
    metric: str
    examples: int
    described: str
    chance: float | None

    @property
    def title(self) -> str:
        """What a column of the task is called."""
        split = "" if self.split in ("test", "text") else f" {self.split}"
        shots = "" if self.shots is None else f", {self.shots}-shot"
        return f"{self.task}{split}{shots} ({self.metric})"

    @property
    def standard_error(self) -> float:
        """Of the metric near chance; a correlation's is 1 / √examples."""
        variance = 1.0 if self.metric == "matthews" else self.chance * (1 - self.chance)
        return math.sqrt(variance / self.examples)

    def has(self, row: Row, *, only_model: bool) -> bool:
        """Whether `row` of evaluations.jsonl is this line's, of any step."""
        own_model = only_model or row["model"] == self.model
        return own_model and (row["task"], row["split"], row.get("shots")) == (self.task, self.split, self.shots)

    def shown(self, row: Row) -> str:
        """The metric in `row`, with its standard error where that is known."""
        scale = 1 if self.metric in _AS_THEY_ARE else 100
        value, error = row[self.metric], row.get(f"{self.metric}_stderr")
        digits = 1 if scale == 100 else 3
        return f"{scale * value:.{digits}f}" + ("" if error is None else f" ± {scale * error:.{digits}f}")


def write_evaluation_report(workdir: Path, *, lines: list[Line], rows: list[Row], config: dict[str, Any]) -> Path:
    """Writes `report.md` with its pictures into `workdir`, where predictions.jsonl stands; returns its path.

    Args:
      lines: of every model the same tasks in the same order.
      rows: of evaluations.jsonl: step (None where weights do not say), tokens, task, split, metrics; of several models
        model, of prompted tasks shots.
    """
    models = list(dict.fromkeys(line.model for line in lines))
    own = {id(line): [row for row in rows if line.has(row, only_model=len(models) == 1)] for line in lines}
    text = [f"# Without fine-tuning: {', '.join(models)}", ""]
    text += _scores(models, lines, own)
    text += _how(lines, models[0])
    steps = any(len(found) > 1 for found in own.values())
    if steps:
        _draw_steps([(line, own[id(line)]) for line in lines], len(models) > 1, workdir / "zero_shot.png")
        text += ["![Scores by pretraining step](zero_shot.png)", ""]
    curves = _curves(lines, own)
    if curves:
        _draw_shots(curves, workdir / "shots.png")
        text += ["![Scores by the number of solved examples in the prompt](shots.png)", ""]
    text += _worst(workdir / "predictions.jsonl")
    text += ["## Config", "", "```json", json.dumps(config, indent=2), "```"]
    path = workdir / "report.md"
    path.write_text("\n".join(text) + "\n", encoding="utf-8")
    return path


# --- tables


def _scores(models: list[str], lines: list[Line], own: dict[int, list[Row]]) -> list[str]:
    """A row for each model and step, one for guessing, and the published ones."""
    columns = [line for line in lines if line.model == models[0]]
    text = ["Accuracies and the like times 100, ± one standard error.", ""]
    text += [f"| model | step | tokens | {' | '.join(line.title for line in columns)} |"]
    text += ["|---" * (3 + len(columns)) + "|"]
    for model in models:
        mine = [line for line in lines if line.model == model]
        for values in zip(*(own[id(line)] for line in mine), strict=True):
            cells = [line.shown(row) for line, row in zip(mine, values, strict=True)]
            text.append(_row([model, _number(values[0]["step"]), _number(values[0]["tokens"]), *cells]))
    if any(line.chance is not None for line in columns):
        guesses = ["" if line.chance is None else f"{100 * line.chance:.1f}" for line in columns]
        text.append(_row(["guessing", "", "", *guesses]))
    known = tomllib.loads(_PUBLISHED.read_text(encoding="utf-8"))
    names = dict.fromkeys(name for line in columns for name in known.get(line.task, {}))
    for name in names:
        cells = [_published(line, known.get(line.task, {}).get(name)) for line in columns]
        if any(cells):
            text.append(_row([f"*{name}* (published)", "", "", *cells]))
    return [*text, ""]


def _published(line: Line, entry: Row | None) -> str:
    if not entry or line.metric not in entry:
        return ""
    return f"{entry[line.metric]:.1f} ({entry['shots']}-shot)"


def _how(lines: list[Line], model: str) -> list[str]:
    """How each task is asked."""
    text = ["| task | split | shots | examples | chance ± one standard error | how |", "|---|---|---|---|---|---|"]
    for line in lines:
        if line.model == model:
            chance = ""
            if line.chance is not None:
                chance = f"{100 * line.chance:.1f} ± {100 * line.standard_error:.1f}"
            shots = "" if line.shots is None else str(line.shots)
            text.append(_row([line.task, line.split, shots, f"{line.examples:,}", chance, line.described]))
    return [*text, ""]


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


# --- the worst examples


def _worst(path: Path) -> list[str]:
    """Of each task those whose right answer was furthest from being given."""
    by_task: dict[str, list[Row]] = {}
    content = path.read_text(encoding="utf-8") if path.exists() else ""
    for line in content.split("\n")[:-1]:  # a string may hold U+2028, at which str.splitlines would cut
        row = json.loads(line)
        if row.get("right") is False and row.get("margin") is not None:
            shots = f", {row['shots']}-shot" if "shots" in row else ""
            model = f", {row['model']}" if "model" in row else ""
            by_task.setdefault(f"{row['task']}{shots}{model}", []).append(row)
    text = []
    for title, rows in by_task.items():
        text += [f"### {title}", ""]
        for row in sorted(rows, key=lambda row: -row["margin"])[:WORST]:
            text += [f"- {row['id']}: {_told(row)}"]
        text.append("")
    return ["## The worst examples", "", *text] if text else []


def _told(row: Row) -> str:
    """An example, what the model would have, and what is right."""
    contexts = " / ".join(_short(context) for context in row["contexts"])
    if "answers" in row:
        return f"{contexts} ⟶ {_short(row['prediction'])}; right: {_short(' or '.join(row['answers']))}"
    if "gold" not in row:
        return f"{contexts} ⟶ {_short(row['continuations'][0])}, {row['margin']:.1f} nats"
    if len(row["continuations"]) == 1:  # the same after each of several contexts
        candidates, before = [context + row["continuations"][0] for context in row["contexts"]], ""
    else:
        candidates, before = row["continuations"], f"{contexts} ⟶ "
    chosen, right = candidates[row["prediction"]], candidates[row["gold"][0]]
    return f"{before}{_short(chosen)}; right: {_short(right)} (by {row['margin']:.2f} nats)"


def _short(text: str) -> str:
    text = " ".join(text.split())
    text = text if len(text) <= _SHOWN else f"... {text[-_SHOWN:]}"
    return f"`{text.replace('`', chr(39))}`"


# --- pictures


def _draw_steps(curves: list[tuple[Line, list[Row]]], several: bool, path: Path) -> None:
    """The plain metric, and how far it is from chance (0) to perfect (1), over pretraining."""
    figure, (plain, relative) = _figure(2)
    for number, (line, rows) in enumerate(curves):
        places = [row["step"] or 0 for row in rows]
        label = f"{line.title}, {line.model}" if several else line.title
        style = dict(color=f"C{number}", marker="o", markersize=4, label=label)
        plain.plot(places, [row[line.metric] for row in rows], **style)
        if line.chance is not None:
            plain.axhline(line.chance, color=f"C{number}", linewidth=0.8, linestyle=":")
            relative.plot(places, [row["above_chance"] for row in rows], **style)
    relative.axhline(0, color="0.3", linewidth=0.8)
    plain.set(xlabel="pretraining step", ylabel="score (dotted: chance)")
    relative.set(xlabel="pretraining step", ylabel="share of the way from chance to perfect")
    _finish(figure, (plain, relative), plain, path)


def _curves(lines: list[Line], own: dict[int, list[Row]]) -> dict[str, list[tuple[float, Line, Row]]]:
    """label -> (shots, line, row of the newest checkpoint), of tasks that were asked with several numbers of them."""
    curves: dict[str, list[tuple[float, Line, Row]]] = {}
    several = len({line.model for line in lines}) > 1
    for line in lines:
        if line.shots is not None:
            row = own[id(line)][-1]
            label = f"{line.task} ({line.metric})" + (f", {line.model}" if several else "")
            shots = row["shots_used"] if line.shots == "most" else line.shots
            curves.setdefault(label, []).append((float(shots), line, row))
    return {label: sorted(found, key=lambda x: x[0]) for label, found in curves.items() if len(found) > 1}


def _draw_shots(curves: dict[str, list[tuple[float, Line, Row]]], path: Path) -> None:
    """The metric over the number of solved examples, with standard errors."""
    figure, axes = _figure(1)
    for number, (label, found) in enumerate(curves.items()):
        shots, lines, rows = zip(*found, strict=True)
        values = [row[line.metric] for line, row in zip(lines, rows, strict=True)]
        errors = [row.get(f"{line.metric}_stderr") or 0.0 for line, row in zip(lines, rows, strict=True)]
        axes.errorbar(shots, values, errors, color=f"C{number}", marker="o", markersize=4, capsize=3, label=label)
        if lines[0].chance is not None:
            axes.axhline(lines[0].chance, color=f"C{number}", linewidth=0.8, linestyle=":")
    axes.set_xscale("symlog", base=2, linthresh=1)
    ticks = sorted({shots for found in curves.values() for shots, *_ in found})
    axes.set_xticks(ticks, [f"{shots:g}" for shots in ticks])
    axes.set(xlabel="solved examples in the prompt", ylabel="score ± one standard error (dotted: chance)")
    _finish(figure, (axes,), axes, path)


def _figure(count: int):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11 if count > 1 else 7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)  # drawn in memory: no display, no global state
    return figure, figure.subplots(1, count)


def _finish(figure, all_axes, with_legend, path: Path) -> None:
    for axes in all_axes:
        axes.grid(alpha=0.3)
    with_legend.legend()
    figure.savefig(path, dpi=110)
