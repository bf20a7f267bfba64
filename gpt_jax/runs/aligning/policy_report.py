"""The report of a policy-gradient run: what the reward rose to, what that cost in KL, and what the policy says now."""

import json
import time
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from gpt_jax import configuration
from gpt_jax.progress import clock
from gpt_jax.training.metrics_log import MetricsLog
from gpt_jax.training.report import appendix, escape, table_row

COLUMNS = ("step", "score", "kl", "reward", "entropy", "length", "ended")


def finish(config: ConfigDict, workdir: Path, log: MetricsLog, began: float) -> dict[str, float]:
    """Writes report.md with its figure and prints the result, which is returned: the last evaluation."""
    rows, samples = log.rows("valid"), log.samples()
    first, last = rows[0], rows[-1]
    train = log.rows("train")
    timed = train[1:] or train  # the first compiles
    spent = {name: sum(row[f"seconds_{name}"] for row in timed) for name in ("rollout", "scoring", "learning")}
    total = max(sum(spent.values()), 1e-9)
    summary = [
        ("score of fresh answers", f"{last['score']:.4f}, {first['score']:.4f} at step {first['step']}"),
        ("KL from the reference", f"{last['kl']:.3f} nats an answer"),
        ("length", f"{last['length']:.1f} tokens, {first['length']:.1f} at step {first['step']}"),
        ("steps", f"{config.train.steps:,} of {config.train.batch_size:,} answers"),
        ("time of a step", ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in spent.items())),
        ("reward", str(config.reward.source)),
        ("initialised from", str(config.init_from)),
        ("time of this start", clock(time.monotonic() - began)),
    ]
    title = f"{config.run.upper()} of {Path(config.init_from).name} on {config.data.source}"
    draw(log.rows(), workdir / "reward.png")
    lines = [f"# {title}", "", "| | |", "|---|---|"] + [table_row(pair) for pair in summary]
    lines += ["", "![Score and KL by step, and the score against the KL](reward.png)", ""]
    lines += ["## Fresh answers to held-out prompts", "", table_row(COLUMNS), table_row("---" for _ in COLUMNS)]
    lines += [table_row(f"{row[name]:.4g}" for name in COLUMNS) for row in rows]
    lines += side_by_side(samples)
    lines += appendix(configuration.as_json(config), json.loads((workdir / "environment.json").read_text()))
    path = workdir / "report.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name, value in summary:
        print(f"{name}: {value}")
    print(f"report: {path}")
    return {name: last[name] for name in ("score", "kl", "reward", "length")}


def side_by_side(samples: list[dict[str, Any]]) -> list[str]:
    """The lines of a table of what the policy answered at first and at last."""
    if not samples:
        return []
    first, last = samples[0]["step"], samples[-1]["step"]
    pairs = zip(
        (row for row in samples if row["step"] == first), (row for row in samples if row["step"] == last), strict=False
    )
    head = ("prompt", f"step {first}", "score", f"step {last}", "score")
    lines = ["", "## Samples, before and after", "", table_row(head), table_row("---" for _ in head)]
    for before, after in pairs:
        cells = [before["prompt"], before["continuation"], f"{before['score']:.3f}"]
        cells += [after["continuation"], f"{after['score']:.3f}"]
        lines.append("| " + " | ".join(escape(cell).replace("\n", "<br>") for cell in cells) + " |")
    return lines


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draws the score and the KL by step, and the score against the KL, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.8), layout="constrained")
    FigureCanvasAgg(figure)  # drawn in memory: no display, no global state
    panels = zip(figure.subplots(1, 3), (("step", "score"), ("step", "kl"), ("kl", "score")), strict=True)
    names = {"step": "step", "score": "score", "kl": "KL (nats an answer)"}
    for axes, (x, y) in panels:
        for split, style in (("train", dict(color="0.7", linewidth=0.8)), ("valid", dict(color="C3", marker="o"))):
            points = [(row[x], row[y]) for row in rows if row["split"] == split]
            if points and (split == "valid" or x == "step"):
                axes.plot(*zip(*points, strict=True), label=split, **style)
        axes.set(xlabel=names[x], ylabel=names[y])
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
