"""What became of the documents: counts by source, stage and reason, samples and histograms; and `why` of one document.

A tally of any part of the documents can be made anywhere and added to another: the sum does not depend on the parts.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from gpt_jax.data.curation.documents import Decision
from gpt_jax.data.curation.passes import EXCERPT_CHARACTERS, Finished, Record, size_of
from gpt_jax.data.curation.reading import Skipped

SAMPLES = 3
WORD_BINS = 24  # bin b: 2^(b-1) <= words < 2^b
SHARE_BINS = 20  # of scores and similarities, 0 to 1

READ, KEPT = "read/", "kept/"  # where all documents are counted that came in, and that went out


@dataclass
class SourceTally:
    """Of one source.

    Attributes:
      counts: "stage/reason" -> [documents, words, bytes] that were lost there; `READ` -> all that was there, `KEPT` ->
        what is left. So READ minus all others is KEPT. Text cut out of documents that stay counts no documents there:
        it stands in `changed`, as [documents, words, bytes] of each stage.
      tokens: of what is left; None where there was no tokenizer to count them by.
      samples: "stage/reason" -> the `SAMPLES` documents of the least hash, as [hash, id, numbers, beginning].
      histograms: name -> counts by bin.
    """

    counts: dict[str, list[int]] = field(default_factory=dict)
    changed: dict[str, list[int]] = field(default_factory=dict)
    tokens: int | None = None
    samples: dict[str, list[list]] = field(default_factory=dict)
    histograms: dict[str, list[int]] = field(default_factory=dict)


class Tally:
    """Counts, samples and histograms of each source."""

    def __init__(self, sources: Mapping[str, Any] | None = None):
        """Empty, or what `as_json` gave."""
        self.sources = {name: SourceTally(**values) for name, values in (sources or {}).items()}

    def as_json(self) -> dict[str, Any]:
        """Plain values, in the order of the sources' names."""
        return {name: asdict(self.sources[name]) for name in sorted(self.sources)}

    def add(self, finished: Finished) -> None:
        """Counts a document."""
        record, own = finished.record, self._of(finished.record.source)
        size, cleaned = record.sizes
        _count(own.counts, READ, 1, *size)
        _bin(own.histograms, "words read", *_word_bin(size[0]))
        if record.score:
            _bin(own.histograms, "score read", *_share_bin(record.score))
        for decision in record.decisions:
            if "similarity" in decision.numbers:
                _bin(own.histograms, "similarity", *_share_bin(decision.numbers["similarity"]))
            if decision.kept and decision.stage == "cleanup":
                _changed(own, "cleanup", size, cleaned)
                size = cleaned
            if decision.kept and decision.stage == "exact_substrings":
                _changed(own, "exact_substrings", size, finished.without_passages)
                size = finished.without_passages
            if not decision.kept:
                name = f"{decision.stage}/{decision.reason}"
                _count(own.counts, name, 1, *size)
                self._sample(own, name, record, decision)
                return
        left = tuple(map(sum, zip(*map(size_of, finished.texts), strict=True)))
        _changed(own, "contamination", size, left)
        _count(own.counts, KEPT, 1, *left)
        if finished.tokens is not None:
            own.tokens = (own.tokens or 0) + finished.tokens
        _bin(own.histograms, "words kept", *_word_bin(left[0]))
        if record.score:
            _bin(own.histograms, "score kept", *_share_bin(record.score))

    def add_copy(self, record: Record) -> None:
        """Counts a document whose text, word for word, is there already."""
        own = self._of(record.source)
        for name in (READ, "read/copy"):
            _count(own.counts, name, 1, *record.sizes[0])

    def add_skipped(self, skipped: Skipped) -> None:
        """Counts what could not be read at all, whose size is unknown."""
        own = self._of(skipped.source)
        _count(own.counts, READ, 1, 0, 0)
        _count(own.counts, f"read/{skipped.reason}", 1, 0, 0)

    def merge(self, other: "Tally") -> None:
        """Adds another part's tally."""
        for name, theirs in other.sources.items():
            own = self._of(name)
            for mine, added in ((own.counts, theirs.counts), (own.changed, theirs.changed)):
                for key, counts in added.items():
                    _count(mine, key, *counts)
            if theirs.tokens is not None:
                own.tokens = (own.tokens or 0) + theirs.tokens
            for key, counts in theirs.histograms.items():
                mine = own.histograms.setdefault(key, [0] * len(counts))
                own.histograms[key] = [a + b for a, b in zip(mine, counts, strict=True)]
            for key, samples in theirs.samples.items():
                own.samples[key] = sorted([*own.samples.get(key, []), *samples])[:SAMPLES]

    def _of(self, source: str) -> SourceTally:
        return self.sources.setdefault(source, SourceTally())

    def _sample(self, own: SourceTally, name: str, record: Record, decision: Decision) -> None:
        order = hashlib.blake2b(record.id.encode(), digest_size=8).hexdigest()
        samples = own.samples.setdefault(name, [])
        if len(samples) < SAMPLES or order < samples[-1][0]:
            sample = [order, record.id, _in_order(decision.numbers), harmless(record.text[:EXCERPT_CHARACTERS])]
            own.samples[name] = sorted([*samples, sample], key=lambda one: one[:2])[:SAMPLES]


def _count(counts: dict[str, list[int]], name: str, documents: int, words: int, size: int) -> None:
    before = counts.get(name, (0, 0, 0))
    counts[name] = [before[0] + documents, before[1] + words, before[2] + size]


def _changed(own: SourceTally, stage: str, before: tuple[int, ...], after: tuple[int, ...]) -> None:
    if list(before) != list(after):
        _count(own.changed, stage, 1, before[0] - after[0], before[1] - after[1])


def _bin(histograms: dict[str, list[int]], name: str, place: int, bins: int) -> None:
    histograms.setdefault(name, [0] * bins)[place] += 1


def _word_bin(words: int) -> tuple[int, int]:
    return min(words.bit_length(), WORD_BINS - 1), WORD_BINS


def _share_bin(share: float) -> tuple[int, int]:
    return min(int(share * SHARE_BINS), SHARE_BINS - 1), SHARE_BINS


def _in_order(numbers: Mapping[str, Any]) -> dict[str, Any]:
    return {name: numbers[name] for name in sorted(numbers)}


def harmless(text: str) -> str:
    """The text on one line, without characters that a terminal or a page would act on."""
    return "".join(c if c.isprintable() else "␤" if c == "\n" else " " if c == "\t" else "�" for c in text)


def explain(values: Mapping[str, Any]) -> Iterable[str]:
    """Lines that say what was decided about a document, from the row of decisions/ that holds it."""
    yield f"{values['id']}"
    yield f"  read from {values['place']}: {values['words']:,} words, {values['bytes']:,} bytes"
    for copy in values.get("copies", []):
        yield f"  the same text stands in {copy}"
    if not values["decisions"]:
        yield "  no stage had anything to say of it"
    for decision in values["decisions"]:
        verdict = "kept" if decision["kept"] else f"DROPPED ({decision['reason']})"
        numbers = ", ".join(f"{name} {_number(value)}" for name, value in decision["numbers"].items())
        yield f"  {decision['stage']}: {verdict}{': ' if numbers else ''}{numbers}"
    if values["written"]:
        yield f"  written as {', '.join(values['written'])} in documents/{values['source']}/"
    else:
        yield "  not in the training set"


def explain_skipped(values: Mapping[str, Any]) -> Iterable[str]:
    """Lines that say why a document could not be read, from its row of skipped.json."""
    yield f"{values['place']}, of the source {values['source']}"
    yield f"  read: DROPPED ({values['reason']}): {values['message']}"
    yield "  not in the training set"


def _number(value: float | int | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) and math.isfinite(value) else str(value)
