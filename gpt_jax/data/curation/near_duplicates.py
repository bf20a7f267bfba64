"""Documents that say nearly the same, found without comparing all pairs: shingles, MinHash, bands, clusters.

A document is the set of its runs of five words. The share of equal minima in two MinHash signatures estimates the
Jaccard similarity s of two sets (Broder 1997). A signature is cut into 21 bands of 6; two documents become candidates
where a whole band agrees, with probability 1 - (1 - s^6)^21: 0.998 at s = 0.8, 0.92 at 0.7, 0.28 at 0.5, 0.015 at 0.3.
Candidates are then compared exactly, so bands decide what is missed and never what is dropped. (GPT-3 used ten bands
of one and single words, which makes nearly everything a candidate; its threshold is not published.)
"""

from collections.abc import Iterable, Sequence

import numpy as np

from gpt_jax.data.curation.words import combined, ngram_hashes, word_hashes
from gpt_jax.extras import require

SHINGLE_WORDS = 5
PERMUTATIONS = 128  # rensa is fastest at powers of two
BANDS, ROWS = 21, 6  # 126 of the 128
THRESHOLD = 0.8
COMPARISONS = 64  # of one document in a big bucket, at most: what keeps its cost linear

_SEED = 42


def shingles(text: str, size: int = SHINGLE_WORDS) -> np.ndarray:
    """The set of hashed runs of `size` words, uint64 [n], sorted; of a shorter text all its words as one run.

    Empty for a text without words, which is nobody's duplicate.
    """
    words = word_hashes(text)
    hashes = np.sort(ngram_hashes(words, min(size, max(1, len(words)))))
    return hashes[np.append(hashes[1:] != hashes[:-1], True)[: len(hashes)]]  # numpy.unique, ten times as fast


def signatures(shingle_sets: Sequence[np.ndarray], permutations: int = PERMUTATIONS) -> np.ndarray:
    """The MinHash signature of each set (uint64 [n_i]) by rensa's R-MinHash, uint32 [len(shingle_sets), permutations].

    They are comparable among themselves only: another version of rensa's algorithm gives others (setup.cfg pins it).
    From some hundred documents on rensa uses all cores; RAYON_NUM_THREADS=1 in the environment leaves it one.
    UserError: rensa is not installed.
    """
    if not shingle_sets:
        return np.zeros((0, permutations), np.uint32)
    offsets = np.cumsum([0, *map(len, shingle_sets)], dtype=np.uint64)
    sketch = require("rensa", "data").RMinHash
    matrix = sketch.digest_matrix_from_flat_token_hashes(np.concatenate(shingle_sets), offsets, permutations, _SEED)
    return np.array(matrix.to_rows(), np.uint32)


def band_keys(signatures: np.ndarray, bands: int = BANDS, rows: int = ROWS) -> np.ndarray:
    """Keys by which candidates meet: documents with an equal key in any one column.

    uint64 [n, bands] of signatures uint32 [n, at least bands * rows].
    """
    grouped = signatures[:, : bands * rows].astype(np.uint64).reshape(len(signatures), bands, rows)
    return combined(grouped[:, :, row] for row in range(rows))


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """The size of the intersection over that of the union of two sorted sets; 0 where both are empty."""
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / max(1, len(a) + len(b) - common)


def bucket_edges(
    members: Sequence[tuple[str, np.ndarray]], threshold: float = THRESHOLD
) -> list[tuple[str, str, float]]:
    """The pairs (lesser id, greater id, their Jaccard >= threshold) that join the near-duplicates in one bucket.

    members: (document id, its shingles), in any order. In a bucket of up to `COMPARISONS` members two documents are
    joined (directly or through others) exactly where pairs at or over the threshold join them; pairs that are joined
    already are not compared. In a larger one each document is compared only with the first member of each component,
    and with `COMPARISONS` of those at most: linear, whatever the bucket holds. What that misses other bands may find.
    """
    depth = None if len(members) <= COMPARISONS else 1
    components: list[list[tuple[str, np.ndarray]]] = []
    edges = []
    for name, own in sorted(members, key=lambda member: member[0]):
        joined = []
        for index, component in enumerate(components[:COMPARISONS]):
            for other, theirs in component[:depth]:
                similarity = _jaccard_if(threshold, own, theirs)
                if similarity is not None:
                    edges.append((other, name, similarity))
                    joined.append(index)
                    break
        if not joined:
            components.append([(name, own)])
            continue
        for index in reversed(joined[1:]):
            components[joined[0]] += components.pop(index)
        components[joined[0]].append((name, own))
    return edges


def clusters(edges: Iterable[tuple[str, str, float]]) -> dict[str, str]:
    """Document id -> the least id of its cluster, for every document on an edge (union-find)."""
    parents: dict[str, str] = {}

    def root(name: str) -> str:
        parents.setdefault(name, name)
        while parents[name] != name:
            parents[name] = parents[parents[name]]  # halves the way for whoever asks next
            name = parents[name]
        return name

    for a, b, _ in edges:
        lesser, greater = sorted((root(a), root(b)))
        parents[greater] = lesser
    return {name: root(name) for name in parents}


def best(candidates: Iterable[tuple[str, float, int]]) -> str:
    """Of a cluster's documents (id, quality score, length) the one to keep: highest score, longest, least id."""
    return min(candidates, key=lambda candidate: (-candidate[1], -candidate[2], candidate[0]))[0]


def _jaccard_if(threshold: float, a: np.ndarray, b: np.ndarray) -> float | None:
    """Their similarity; None where it is under the threshold, which the lengths alone often show."""
    if min(len(a), len(b)) < threshold * max(len(a), len(b)):
        return None
    similarity = jaccard(a, b)
    return similarity if similarity >= threshold else None
