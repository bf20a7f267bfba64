"""Evaluation sets out of the training text, and the examples that are in it all the same, by GPT-3's rules.

Brown et al. 2020, appendix C. Training side: where 13 consecutive words of a document stand in an evaluation set, they
go, with 200 characters on each side; what is left is cut into pieces, of which those under 200 characters are dropped,
and a document cut into more than 10 pieces is dropped whole. 13-grams of more than 10 training documents are common
phrases and do not count. Evaluation side: an example is dirty if any N of its words stand in the training text, N being
the 5th percentile of the examples' lengths, at least 8 and at most 13.

Words are compared as `words` defines them, by 64-bit hashes: with a million n-grams in the set, about one false hit is
to be expected in 2e13 words of text.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from gpt_jax.data.curation.documents import Decision
from gpt_jax.data.curation.words import ngram_hashes, word_hashes, word_spans
from gpt_jax.errors import UserError

NGRAM_WORDS = 13
MIN_NGRAM_WORDS = 8  # of the evaluation side
WINDOW = 200  # characters cut on each side of a hit
MIN_PIECE = 200  # characters
MAX_PIECES = 10
COMMON = 10  # training documents


def evaluation_grams(texts: Iterable[str], n: int = NGRAM_WORDS) -> np.ndarray:
    """The hashed n-grams of all `texts`, uint64 [grams], sorted, each once. UserError: no text has n words."""
    grams = [ngram_hashes(word_hashes(text), n) for text in texts]
    if not any(map(len, grams)):
        raise UserError(
            f"The evaluation set has {len(grams):,} texts, none of {n} words or more, so nothing can be recognised as "
            f"taken from it. Check the file and its text fields, or compare shorter runs of words than {n}."
        )
    return np.unique(np.concatenate(grams))


def count(text: str, grams: np.ndarray, n: int = NGRAM_WORDS) -> np.ndarray:
    """Those of `grams` that stand in `text`, uint64 [found], sorted, each once: for `common` and for `find`."""
    found = ngram_hashes(word_hashes(text), n)
    return np.unique(found[_among(found, grams)])


def common(documents: Mapping[int, int], limit: int = COMMON) -> np.ndarray:
    """The grams (gram -> the number of documents with it) of more than `limit` documents, uint64, sorted.

    `numpy.setdiff1d(grams, common(documents))` is what `cut` should look for.
    """
    return np.array(sorted(gram for gram, number in documents.items() if number > limit), np.uint64)


def find(text: str, grams: np.ndarray, n: int = NGRAM_WORDS) -> list[tuple[int, int]]:
    """Where n-grams of `grams` stand in `text`: (start, stop) in characters, in order, overlapping ones merged.

    An evaluation example is dirty where this finds any of the grams that `count` found in the training documents.
    """
    hits = np.flatnonzero(_among(ngram_hashes(word_hashes(text), n), grams))
    if not len(hits):
        return []
    spans = word_spans(text)
    return _merged([(int(spans[hit, 0]), int(spans[hit + n - 1, 1])) for hit in hits])


def cut(text: str, grams: np.ndarray, n: int = NGRAM_WORDS) -> tuple[list[str], Decision]:
    """The pieces of `text` that may be trained on, each an exact part of it, and why.

    A text without a hit is one piece, whatever its length. Not kept: "shredded" (more than `MAX_PIECES` pieces, counted
    before short ones are dropped), "scraps" (no piece of `MIN_PIECE` characters). Numbers: the hits (overlapping ones
    as one), the pieces kept, and the characters cut.
    """
    hits = find(text, grams, n)
    if not hits:
        return [text], Decision("contamination", True, "", {"hits": 0, "pieces": 1, "characters_cut": 0})
    holes = _merged([(max(0, start - WINDOW), min(len(text), stop + WINDOW)) for start, stop in hits])
    edges = [0, *(edge for hole in holes for edge in hole), len(text)]
    pieces = [text[start:stop] for start, stop in zip(edges[::2], edges[1::2], strict=True) if stop > start]
    reason = "shredded" if len(pieces) > MAX_PIECES else ""
    pieces = [] if reason else [piece for piece in pieces if len(piece) >= MIN_PIECE]
    if not (pieces or reason):
        reason = "scraps"
    numbers = {"hits": len(hits), "pieces": len(pieces), "characters_cut": len(text) - sum(map(len, pieces))}
    return pieces, Decision("contamination", not reason, reason, numbers)


def evaluation_ngram_size(texts: Sequence[str]) -> int:
    """The N of the evaluation side: the 5th percentile of the texts' lengths in words, within 8 and 13."""
    lengths = [len(word_hashes(text)) for text in texts]
    return int(np.clip(np.percentile(lengths, 5), MIN_NGRAM_WORDS, NGRAM_WORDS)) if lengths else NGRAM_WORDS


def _among(hashes: np.ndarray, grams: np.ndarray) -> np.ndarray:
    """Which of `hashes` are in sorted `grams`, bool; quicker than numpy.isin, which would sort both."""
    if not len(grams):
        return np.zeros(len(hashes), bool)
    return grams[np.minimum(np.searchsorted(grams, hashes), len(grams) - 1)] == hashes


def _merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans in order of their starts, those that touch or overlap made one."""
    merged = spans[:1]
    for start, stop in spans[1:]:
        if start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return merged
