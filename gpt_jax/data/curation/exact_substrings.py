"""Long passages that stand in several documents word for word: all but the first go.

After Lee et al. 2022 (arXiv 2107.06499). Three steps, so that any engine can do the middle one in parts: `windows`
hashes each run of 50 words of a document; `mark` tells for all windows with the same hash which is the first of all;
`cut` removes the passages that are not. Windows with the same hash must meet in one call of `mark`, so they may be
divided by hash, never by document.
"""

import numpy as np

from gpt_jax.data.curation.documents import Decision
from gpt_jax.data.curation.words import ngram_hashes, word_hashes, word_spans

MIN_WORDS = 50  # Lee et al.: 50 tokens
UNIQUE, FIRST, AGAIN = 0, 1, 2


def windows(text: str, size: int = MIN_WORDS) -> np.ndarray:
    """The hash of each run of `size` words in order, uint64 [max(0, words - size + 1)]."""
    return ngram_hashes(word_hashes(text), size)


def mark(hashes: np.ndarray) -> np.ndarray:
    """For windows in the order of (document id, position): UNIQUE, FIRST of several, or AGAIN; uint8 [n]."""
    _, first, inverse, counts = np.unique(hashes, return_index=True, return_inverse=True, return_counts=True)
    marks = np.where(counts[inverse] > 1, AGAIN, UNIQUE).astype(np.uint8)
    marks[first[counts > 1]] = FIRST
    return marks


def cut(text: str, marks: np.ndarray, size: int = MIN_WORDS) -> tuple[str, Decision]:
    """`text` without the words of its windows marked AGAIN, and the decision.

    A word that also belongs to a FIRST window stays, so that every passage remains once and whole ("ha ha ha" repeats
    itself). A removed passage goes with the white space behind it. Not kept: "repeated", where no word is left.
    Numbers: the passages and characters cut.
    """
    again = _covered(marks == AGAIN, size) & ~_covered(marks == FIRST, size)
    if not again.any():
        return text, Decision("exact_substrings", True, "", {"passages": 0, "characters_cut": 0})
    starts = np.append(word_spans(text)[:, 0], len(text))
    changes = np.flatnonzero(np.diff(again, prepend=False, append=False))
    edges = [0, *(int(starts[word]) for word in changes), len(text)]
    left = "".join(text[start:stop] for start, stop in zip(edges[::2], edges[1::2], strict=True))
    reason = "repeated" if again.all() else ""
    numbers = {"passages": len(changes) // 2, "characters_cut": len(text) - len(left)}
    return left, Decision("exact_substrings", not reason, reason, numbers)


def _covered(windows: np.ndarray, size: int) -> np.ndarray:
    """The words inside any of the marked windows (bool [words - size + 1]); bool [words]."""
    starts = np.concatenate([[0], np.cumsum(windows)])
    words = np.arange(len(windows) + size - 1)
    return starts[np.minimum(words + 1, len(windows))] > starts[np.maximum(words + 1 - size, 0)]
