"""What came out of ranking answers: how many comparisons teach something, who is preferred, what answers are like."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpt_jax import configuration
from gpt_jax.alignment.rankings import Preference, preferences
from gpt_jax.disk import write_atomically
from gpt_jax.runs.aligning.rankings import Rankings

Row = dict[str, Any]


def report_rankings(
    title: str, answers: Mapping[str, Sequence[Sequence[Row]]], rankings: Rankings, workdir: Path
) -> None:
    """Writes report.md and scores.json, and prints what they say.

    Args:
      answers: by model, of each prompt the rows of its answers.
    """
    judged = [row for row in rankings.rows if row["ranks"] is not None]
    prompts, taught, waiting = rankings.prompts, len(rankings.comparisons), len(rankings.waiting)
    skipped, alone = len(rankings.rows) - len(judged), rankings.alone
    equal = prompts - taught - skipped - waiting - alone
    counts = (
        f"{taught:,} comparisons of {prompts:,} prompts ({equal:,} ranked all equal, {skipped:,} skipped, "
        f"{waiting:,} not ranked yet, {alone:,} with one answer only)"
    )
    models = {name: described([row for rows in own for row in rows], judged, name) for name, own in answers.items()}
    table = preferences([*rankings.rows, *rankings.ties])
    facts = {"comparisons": taught, "models": models, "preferences": [one._asdict() for one in table]}
    configuration.write_json(workdir / "scores.json", facts)
    lines = [counts, "", *answer_table(models), *preference_table(table)]
    write_atomically(workdir / "report.md", "\n".join([f"# {title}", "", *lines, ""]).encode())
    print("\n".join(lines))
    print(f"comparisons: {workdir / 'comparisons.jsonl'}")


def described(rows: Sequence[Row], judged: Sequence[Row], name: str) -> Row:
    """What is known of one model's answers: their number, length and end, and their scores, where they have some.

    `score_error`: the standard error of the mean score, over prompts.
    """
    told = {
        "answers": len(rows),
        "ended": float(np.mean([row["finished"] == "stop" for row in rows])),
        "tokens": float(np.mean([row["tokens"] for row in rows])),
    }
    means = [
        np.mean(own)
        for row in judged
        if "scores" in row
        and (own := [s for s, given in zip(row["scores"], row["models"], strict=True) for by in given if by == name])
    ]
    if len(means) > 1:
        told |= {"score": float(np.mean(means)), "score_error": float(np.std(means, ddof=1) / len(means) ** 0.5)}
    return told


def answer_table(drawn: dict[str, Row]) -> list[str]:
    """The answers of each model, as lines of Markdown."""
    lines = [
        "| model | answers | ended by itself | tokens, mean | mean score ± standard error |",
        "|---|---|---|---|---|",
    ]
    for name, told in drawn.items():
        mean = f"{told['score']:.4f} ± {told['score_error']:.4f}" if "score" in told else ""
        lines.append(f"| {name} | {told['answers']:,} | {told['ended']:.1%} | {told['tokens']:.1f} | {mean} |")
    return [*lines, ""]


def preference_table(table: Sequence[Preference]) -> list[str]:
    """Who is preferred to whom, as lines of Markdown; none of a single model."""
    if not table:
        return []
    lines = ["| model | against | won | tied | lost | share of pairs won (95% interval) |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {one.one} | {one.other} | {one.won} | {one.tied} | {one.lost} | {one.share:.1%} ({one.low:.1%} to "
        f"{one.high:.1%}) |"
        for one in table
    ]
    return [*lines, ""]
