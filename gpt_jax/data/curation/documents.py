"""What every stage of curation speaks of: a document, and the decision of a stage about it."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Document:
    """A text with an id that is unique over all sources and stays the same from run to run."""

    id: str
    source: str
    text: str


@dataclass(frozen=True)
class Decision:
    """What a stage decided about a document, with the numbers that it decided by.

    reason: a short fixed word by which drops are counted ("max_hash_ratio"); "" where the document was kept.
    """

    stage: str
    kept: bool
    reason: str = ""
    numbers: dict[str, float | int | str] = field(default_factory=dict)
