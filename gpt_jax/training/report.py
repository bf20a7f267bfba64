"""`report.md`: what a run did, for people: the loss curve as a picture, the samples, the config, the machine."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

NO_METRICS = ("step", "split", "tokens")


def write_report(
    workdir: Path,
    *,
    title: str,
    summary: list[tuple[str, str]],
    rows: list[dict[str, Any]],
    samples: list[dict[str, Any]],
    config: dict[str, Any],
    environment: dict[str, Any],
    sources: Sequence[dict[str, str]] = (),
    loss: str = "nats per token",
    pictures: Mapping[str, str] = MappingProxyType({}),
) -> Path:
    """Writes `report.md` and `loss.png` into `workdir`; returns the path of the report.

    Args:
      summary: (name, value) pairs for the table at the top.
      rows: metrics rows; samples: sample rows, of which those of the last step are shown whole.
      sources: of a mixture, a row each: what its columns are called and what they say.
      loss: what the loss is counted in; pictures: further ones in `workdir`, by their titles.
    """
    draw_losses(rows, workdir / "loss.png", loss)
    lines = [f"# {title}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in summary]
    lines += ["", "![Loss by step](loss.png)", ""]
    if sources:
        lines += ["## Sources", "", table_row(sources[0]), table_row("---" for _ in sources[0])]
        lines += [table_row(source.values()) for source in sources] + [""]
    for title, name in pictures.items():
        lines += [f"## {title}", "", f"![{title}]({name})", ""]
    if valid := [row for row in rows if row["split"] == "valid"]:
        names = [name for name in valid[0] if name not in NO_METRICS and "/" not in name]
        heads = [loss if name == "loss" else name.replace("_", " ") for name in names]
        lines += ["## Validation", "", table_row(["step", *heads]), table_row("---" for _ in ("step", *heads))]
        lines += [table_row([str(row["step"]), *(f"{row[name]:.4f}" for name in names)]) for row in valid]
    if samples:
        first, last = samples[0]["step"], samples[-1]["step"]
        lines += ["", f"## Samples after step {last}", ""]
        before = {row["prompt"]: row["continuation"] for row in samples if row["step"] == first == 0 != last}
        for row in (row for row in samples if row["step"] == last):
            if row["prompt"] in before:
                lines += quote(f"(before: {escape(before[row['prompt']])})") + [""]
            lines += quote(f"{escape(row['prompt'])} **⟶** {escape(row['continuation'])}") + [""]
    lines += appendix(config, environment)
    path = workdir / "report.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def appendix(config: dict[str, Any], environment: dict[str, Any]) -> list[str]:
    """The lines that end every report: what was asked for, and of which machine."""
    lines = []
    for name, value in (("Config", config), ("Environment", environment)):
        lines += ["", f"## {name}", "", "```json", json.dumps(value, indent=2), "```"]
    return lines


def draw_losses(rows: list[dict[str, Any]], path: Path, unit: str = "nats per token") -> None:
    """Draws training and validation loss by step as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)  # drawn in memory: no display, no global state
    axes = figure.subplots()
    for split, style in (("train", dict(color="0.7", linewidth=0.8)), ("valid", dict(color="C3", marker="o"))):
        points = [(row["step"], row["loss"]) for row in rows if row["split"] == split]
        if points:
            axes.plot(*zip(*points, strict=True), label=split, **style)
    axes.set(xlabel="step", ylabel=f"loss ({unit})")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    figure.savefig(path, dpi=120)


def table_row(cells: Iterable[str]) -> str:
    """A line of a table; `---` draws a rule."""
    return "| " + " | ".join(cell if cell == "---" else escape(cell) for cell in cells) + " |"


def escape(text: str) -> str:
    """Text that Markdown shows as it is."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>#|" else c for c in text)


def quote(text: str) -> list[str]:
    """The lines of a quotation, for text that is escaped where it has to be."""
    # two spaces at a line's end keep the line break in Markdown
    return [f"> {line}  " for line in text.split("\n")]
