"""What a document goes through by itself: before it is compared with all others, and after.

Both runners, the local one and Beam, call these two functions and nothing else of the stages, so they decide alike.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from gpt_jax.data.curation import contamination, exact_substrings, near_duplicates, quality_classifier
from gpt_jax.data.curation.cleanup import Cleanup, clean
from gpt_jax.data.curation.documents import Decision, Document
from gpt_jax.data.curation.quality_rules import Thresholds, check
from gpt_jax.data.curation.reading import Parsed
from gpt_jax.errors import UserError
from gpt_jax.text.tokenizer import Tokenizer

STAGES = (
    "read",
    "cleanup",
    "quality_rules",
    "quality_classifier",
    "near_duplicates",
    "exact_substrings",
    "contamination",
)
EXCERPT_CHARACTERS = 240


@dataclass(frozen=True)
class Treatment:
    """The stages that are on, and what each decides by; it travels to every worker.

    Attributes:
      cleanup, thresholds, classifier, similarity, passage_words: None leaves the stage out.
      trusted: sources that neither rules nor classifier filter; they are scored, which decides between duplicates.
      alpha: of the classifier's keep rule.
      similarity: the Jaccard similarity from which documents are duplicates.
      passage_words: from which a passage that stands in several documents is kept in the first only.
      grams: hashed runs of words of the evaluation sets, uint64, sorted; none leaves de-contamination out.
      common: a gram in more documents than this is common speech, and cuts nothing.
      tokenizer: counts what is kept in tokens too.
    """

    seed: int = 0
    cleanup: Cleanup | None = None
    thresholds: Thresholds | None = None
    classifier: quality_classifier.Classifier | None = None
    trusted: frozenset[str] = frozenset()
    alpha: float = quality_classifier.ALPHA
    similarity: float | None = None
    passage_words: int | None = None
    grams: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    common: int = contamination.COMMON
    tokenizer: Tokenizer | None = None


@dataclass
class Record:
    """A document after the first pass, as the runners carry it; plain values, for JSON.

    Attributes:
      text: what is left of it; of a dropped document its beginning, for the report.
      named_by_text: its id is a hash of its text, so another one of that id is a copy.
      score: of the quality classifier; 0 without one.
      sizes: (words, bytes) as it was read, and after clean-up.
      grams: those of the evaluation sets that it holds.
    """

    id: str
    source: str
    place: str
    text: str
    named_by_text: bool
    score: float
    sizes: tuple[tuple[int, int], tuple[int, int]]
    decisions: list[Decision] = field(default_factory=list)
    grams: list[int] = field(default_factory=list)

    @property
    def kept(self) -> bool:
        """Whether every stage so far kept it."""
        return all(decision.kept for decision in self.decisions)

    def as_json(self) -> dict[str, Any]:
        """Plain values; `from_json` reads them."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Record":
        """The record that `as_json` wrote."""
        return cls(**values | {"decisions": [Decision(**decision) for decision in values["decisions"]]})


@dataclass(frozen=True)
class Verdict:
    """What the comparison with all others says of a document.

    Attributes:
      duplicate: the decision of the search for near-duplicates, of a document that has some.
      passages: (number, mark) of its windows that are not `exact_substrings.UNIQUE`.
    """

    duplicate: Decision | None = None
    passages: Sequence[tuple[int, int]] = ()


@dataclass(frozen=True)
class Finished:
    """A document after the second pass.

    Attributes:
      texts: what goes into the training set; several where it was cut.
      without_passages: (words, bytes) after repeated passages were cut out.
      tokens: of all texts, without the symbols that end them; None where there is no tokenizer.
    """

    record: Record
    texts: list[str]
    without_passages: tuple[int, int] | None = None
    tokens: int | None = None


def first_pass(documents: Sequence[Parsed], treatment: Treatment) -> list[Record]:
    """Clean-up, rules, classifier and a search for grams, in the order of `documents`; each decides by itself."""
    records = [_cleaned(parsed, treatment) for parsed in documents]
    if treatment.classifier is not None:
        kept = [record for record in records if record.kept]
        for record, score in zip(kept, treatment.classifier.score([record.text for record in kept]), strict=True):
            record.score = float(score)
            if record.source not in treatment.trusted:
                record.decisions.append(
                    quality_classifier.keep(record.score, record.id, seed=treatment.seed, alpha=treatment.alpha)
                )
    for record in records:
        if not record.kept:
            record.text = record.text[:EXCERPT_CHARACTERS]
        elif len(treatment.grams):
            record.grams = contamination.count(record.text, treatment.grams).tolist()
    return records


def _cleaned(parsed: Parsed, treatment: Treatment) -> Record:
    document = parsed.document
    text, decisions = document.text, []
    if treatment.cleanup is not None:
        text, decision = clean(text, treatment.cleanup)
        decisions.append(decision)
    if not text.strip() and all(decision.kept for decision in decisions):
        decisions.append(Decision("read" if text == document.text else "cleanup", False, "empty"))
    filtered = treatment.thresholds is not None and document.source not in treatment.trusted
    if filtered and all(decision.kept for decision in decisions):
        decisions.append(check(text, treatment.thresholds))
    return Record(
        document.id, document.source, parsed.place, text or document.text, parsed.named_by_text, 0.0,
        (size_of(document.text), size_of(text)), decisions,
    )  # fmt: skip


def size_of(text: str) -> tuple[int, int]:
    """Words and bytes."""
    return len(text.split()), len(text.encode())


def second_pass(record: Record, verdict: Verdict, grams: np.ndarray, treatment: Treatment) -> Finished:
    """What comes after the comparison with all others: duplicates, repeated passages, what evaluations hold.

    Args:
      grams: those of `treatment.grams` that are not common.
    """
    if record.kept and verdict.duplicate is not None:
        record.decisions.append(verdict.duplicate)
    text, size = record.text, None
    if record.kept and verdict.passages:
        marks = np.zeros(len(exact_substrings.windows(text, treatment.passage_words)), np.uint8)
        places, values = zip(*verdict.passages, strict=True)
        marks[list(places)] = values
        text, decision = exact_substrings.cut(text, marks, treatment.passage_words)
        record.decisions.append(decision)
        size = size_of(text)
    texts = [text]
    # Where a passage is gone, words stand side by side that did not before.
    if record.kept and (size or record.grams):
        texts, decision = contamination.cut(text, grams)
        if decision.numbers["hits"]:
            record.decisions.append(decision)
    texts, tokens = texts if record.kept else [], None
    if treatment.tokenizer is not None:
        tokens = sum(len(treatment.tokenizer.encode(one)) for one in texts)
    return Finished(record, texts, size, tokens)


def output_documents(finished: Finished) -> list[Document]:
    """What goes into the training set: the document, or the pieces of SOURCE:ID as SOURCE#1:ID, SOURCE#2:ID, ...

    Own ids may hold any character, names of sources no `#` and no `:`, so a piece is never called as a document is.
    """
    record = finished.record
    if len(finished.texts) == 1:
        return [Document(record.id, record.source, finished.texts[0])]
    own_id = record.id.removeprefix(record.source)
    return [Document(f"{record.source}#{n}{own_id}", record.source, text) for n, text in enumerate(finished.texts, 1)]


def cut_from(name: str) -> str:
    """The id of the document that a piece is of, SOURCE:ID of SOURCE#2:ID; another id as it is."""
    source, colon, own_id = name.partition(":")
    return source.partition("#")[0] + colon + own_id


def duplicate_decisions(
    edges: Sequence[tuple[str, str, float]], candidates: dict[str, tuple[float, int]]
) -> dict[str, Decision]:
    """The verdict on every document that has a near-duplicate.

    Args:
      edges: pairs of ids that are near-duplicates, with their similarity; in any order, and repeated.
      candidates: id -> (score, characters) of at least all that `edges` name.
    """
    nearest: dict[str, tuple[float, str]] = {}
    for a, b, similarity in edges:
        for one, other in ((a, b), (b, a)):
            if one not in nearest or (similarity, nearest[one][1]) > (nearest[one][0], other):
                nearest[one] = (similarity, other)
    members: dict[str, list[str]] = {}
    for name, cluster in near_duplicates.clusters(edges).items():
        members.setdefault(cluster, []).append(name)
    decisions = {}
    for cluster, names in members.items():
        best = near_duplicates.best([(name, *candidates[name]) for name in sorted(names)])
        for name in names:
            similarity, other = nearest[name]
            numbers = {
                "cluster": cluster, "documents": len(names), "kept": best, "nearest": other,
                "similarity": round(similarity, 4),
            }  # fmt: skip
            kept = name == best
            decisions[name] = Decision("near_duplicates", kept, "" if kept else "near_duplicate", numbers)
    return decisions


def uncommon(treatment: Treatment, counts: Mapping[int, int]) -> np.ndarray:
    """Those of the treatment's grams that count: not in too many documents (`counts`) of those that are left."""
    return np.setdiff1d(treatment.grams, contamination.common(counts, treatment.common))


def shard_of(document_id: str, shards: int) -> int:
    """Where a document is written: by a hash of its id, so that neither order nor number of workers matters."""
    digest = hashlib.blake2b(document_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % shards


def shingles_of(record: Record) -> np.ndarray:
    """The set by which a record is compared with others."""
    return near_duplicates.shingles(record.text)


def equal_ids(name: str, places: Sequence[str], documents: int) -> UserError:
    """What to say of documents whose own ids are the same: `name` is that of two, `documents` are too many in all."""
    return UserError(
        f"the id {name.partition(':')[2]!r} of source {name.partition(':')[0]!r} is that of two documents: "
        f"{' and '.join(places)}{f' ({documents:,} such documents in all)' if documents > 1 else ''}. Ids must be "
        "unique in a source. Correct them, name another field (--config.id_field=NAME), or have documents called by a "
        "hash of their text (--config.id_field=); each in another --workdir, since this one was begun with these ids."
    )
