"""`report.md` of a curation: what became of every source, by stage and reason, with samples and pictures."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpt_jax.data.curation.passes import STAGES
from gpt_jax.data.curation.provenance import KEPT, READ, SHARE_BINS, SourceTally, Tally, harmless
from gpt_jax.data.curation.quality_classifier import Classifier
from gpt_jax.data.curation.reading import Skipped
from gpt_jax.errors import UserError

_SKIPPED_SHOWN = 20


def write_curation_report(
    workdir: Path,
    tally: Tally,
    *,
    summary: Sequence[tuple[str, str]],
    classifier: Classifier | None,
    skipped: Sequence[Skipped],
    config: Mapping[str, Any],
) -> Path:
    """Writes `report.md` and a picture of each source into `workdir`; returns the path of the report.

    Args:
      summary: (name, value) pairs for the table at the top.
    """
    lines = ["# Curation", "", *overview(tally), "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in summary]
    if classifier is not None:
        measured = ", ".join(f"{name} {value:.4g}" for name, value in classifier.held_out.items())
        lines += ["", f"Quality classifier, on passages that it did not learn from: {measured}. (Passages of one text "
                  "may stand on both sides.)"]  # fmt: skip
    for name, own in tally.sources.items():
        lines += ["", f"## {name}", "", *_losses(own), "", f"![Lengths, scores and similarities]({name}.png)"]
        _draw(own, name, workdir / f"{name}.png")
        lines += _samples(own)
    if skipped:
        lines += ["", f"## Not read: {len(skipped):,}", "", "All of them stand in skipped.json.", ""]
        lines += [f"- {one.reason}: {one.place}: {_cell(one.message)}" for one in skipped[:_SKIPPED_SHOWN]]
    lines += ["", "## Config", "", "```json", json.dumps(config, indent=2), "```"]
    path = workdir / "report.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def overview(tally: Tally) -> list[str]:
    """A table of all sources; with tokens where a tokenizer counted them."""
    counted = any(own.tokens is not None for own in tally.sources.values())
    lines = [
        f"| source | documents in | out | | words in | words out | bytes in | bytes out |{' tokens out |' * counted}",
        "|---|" + "---:|" * (7 + counted),
    ]
    for name, own in tally.sources.items():
        (documents, words, size), (left, words_left, size_left) = own.counts[READ], own.counts.get(KEPT, (0, 0, 0))
        lines.append(
            f"| {name} | {documents:,} | {left:,} | {left / max(1, documents):.1%} | {words:,} | {words_left:,} "
            f"| {size:,} | {size_left:,} |{f' {own.tokens or 0:,} |' * counted}"
        )
    return lines


def _losses(own: SourceTally) -> list[str]:
    lines = ["| stage | reason | documents | of those read | words | bytes |", "|---|---|" + "---:|" * 4]
    total = max(1, own.counts[READ][0])

    def row(stage: str, reason: str, counts: Sequence[int], documents: int) -> str:
        return f"| {stage} | {reason} | {documents:,} | {documents / total:.2%} | {counts[1]:,} | {counts[2]:,} |"

    lines.append(row("read", "**all**", own.counts[READ], own.counts[READ][0]))
    for stage in STAGES:
        reasons = sorted(name for name in own.counts if name.startswith(f"{stage}/") and name != READ)
        lines += [row(stage, name.partition("/")[2], own.counts[name], -own.counts[name][0]) for name in reasons]
        if stage in own.changed:
            lines.append(row(stage, f"text cut from {own.changed[stage][0]:,} that stay", own.changed[stage], 0))
    kept = own.counts.get(KEPT, (0, 0, 0))
    lines.append(row("kept", "**all**", kept, kept[0]))
    return lines


def _samples(own: SourceTally) -> list[str]:
    lines = []
    for name, samples in sorted(own.samples.items()):
        lines += ["", f"### {name.replace('/', ': ')}", ""]
        rule = name.partition("/")[2].removeprefix("max_").removeprefix("min_")
        for _, document_id, numbers, text in samples:
            numbers = {rule: numbers[rule]} if rule in numbers else numbers  # of the many that rules measure
            told = ", ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                             for key, value in numbers.items() if value)  # fmt: skip
            lines += [f"- {_cell(document_id)} ({_cell(told)})", f"  > {_cell(text)}"]
    return lines


def _cell(text: str) -> str:
    """On one line, and without what Markdown would act on."""
    text = " ".join(harmless(text).split())
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>#|!~&" else c for c in text)


def _draw(own: SourceTally, title: str, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [
        ("words", [("words read", "0.75"), ("words kept", "C0")], "words of a document (bin b: up to 2^b)"),
        ("score", [("score read", "0.75"), ("score kept", "C0")], "score of the quality classifier"),
        ("similarity", [("similarity", "C3")], "Jaccard similarity to the nearest document"),
    ]
    shown = [one for one in shown if any(name in own.histograms for name, _ in one[1])]
    figure = Figure(figsize=(4.2 * max(1, len(shown)), 3.4), layout="constrained")
    FigureCanvasAgg(figure)  # drawn in memory: no display, no global state
    figure.suptitle(title)
    for axes, (kind, names, label) in zip(
        figure.subplots(1, max(1, len(shown)), squeeze=False)[0], shown, strict=False
    ):
        for name, color in names:
            counts = own.histograms.get(name, [])
            places = range(len(counts)) if kind == "words" else [(b + 0.5) / SHARE_BINS for b in range(len(counts))]
            width = 0.9 if kind == "words" else 0.9 / SHARE_BINS
            axes.bar(places, counts, width=width, color=color, label=name)
        axes.set(xlabel=label, ylabel="documents", yscale="symlog")
        axes.legend()
    figure.savefig(path, dpi=100)


def emptiness(tally: Tally, sources: Sequence[str], workdir: Path) -> UserError | None:
    """What to say of sources of which nothing is left; None where there is none."""
    empty = [name for name in sources if not tally.sources.get(name, SourceTally()).counts.get(KEPT, (0,))[0]]
    if not empty:
        return None
    counts = tally.sources.get(empty[0], SourceTally()).counts
    losses = sorted(((count[0], name) for name, count in counts.items() if name != READ), reverse=True)
    told = ", ".join(f"{documents:,} by {name.replace('/', ': ')}" for documents, name in losses[:3])
    what = f"none of its {counts[READ][0]:,} documents is left ({told})" if counts else "there is no document in it"
    return UserError(
        f"source {empty[0]!r}: {what}. No training set was written; {workdir / 'report.md'} has samples of what was "
        "dropped, and configs/curate.py:why,id=ID tells of one document. Loosen what drops them (--config.rules.off, "
        "--config.classifier.on=False, --config.trusted), in another --workdir, or leave the source out."
    )
