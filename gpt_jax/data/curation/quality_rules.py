"""Simple rules of quality, as Gopher and C4 published them: counts and ratios, each with a named threshold.

Gopher: Rae et al. 2021 (arXiv 2112.11446), appendix A.1.1 and table A1. C4: Raffel et al. 2020, section 2.2, and its
TFDS code. They were made for English web pages: `min_stop_words` and the word lengths want other values for other
languages, and a threshold of None switches its rule off.
"""

import re
from dataclasses import dataclass, fields

import numpy as np

from gpt_jax.data.curation.documents import Decision
from gpt_jax.data.curation.words import ngram_hashes

STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))  # Gopher A.1.1
BULLETS = ("\u2022", "\u2023", "\u25cf", "\u25e6", "*", "-")
TOP_SIZES = (2, 3, 4)
DUPLICATE_SIZES = (5, 6, 7, 8, 9, 10)
_ELLIPSIS = re.compile(r"\.\.\.|\u2026")
_SENTENCE_END = re.compile(r"[.!?\u2026]+(?=[\s\"'\u201d\u2019)\]]|$)|[\u3002\uff01\uff1f\u0964\u061f]")
_PARAGRAPHS = re.compile(r"\n\s*\n")
_LETTER = re.compile(r"[^\W\d_]")


@dataclass(frozen=True)
class Thresholds:
    """min_X: the number X of a document must not be less; max_X: not greater. None: no such rule."""

    min_words: float | None = 50  # Gopher
    max_words: float | None = 100_000  # Gopher
    min_mean_word_length: float | None = 3  # Gopher
    max_mean_word_length: float | None = 10  # Gopher
    max_longest_word: float | None = 1000  # C4's code (there a line is dropped)
    max_hash_ratio: float | None = 0.1  # Gopher: "#" per word
    max_ellipsis_ratio: float | None = 0.1  # Gopher: "..." per word
    max_bullet_lines: float | None = 0.9  # Gopher: share of lines
    max_ellipsis_lines: float | None = 0.3  # Gopher: share of lines
    min_alphabetic_words: float | None = 0.8  # Gopher: share of words
    min_stop_words: float | None = 2  # Gopher: different ones; English
    min_sentences: float | None = 3  # C4
    max_duplicate_lines: float | None = 0.30  # from here on Gopher, table A1
    max_duplicate_paragraphs: float | None = 0.30
    max_duplicate_line_characters: float | None = 0.20
    max_duplicate_paragraph_characters: float | None = 0.20
    max_top_2_gram_characters: float | None = 0.20
    max_top_3_gram_characters: float | None = 0.18
    max_top_4_gram_characters: float | None = 0.16
    max_duplicate_5_gram_characters: float | None = 0.15
    max_duplicate_6_gram_characters: float | None = 0.14
    max_duplicate_7_gram_characters: float | None = 0.13
    max_duplicate_8_gram_characters: float | None = 0.12
    max_duplicate_9_gram_characters: float | None = 0.11
    max_duplicate_10_gram_characters: float | None = 0.10


def check(text: str, thresholds: Thresholds | None = None) -> Decision:
    """Whether `text` keeps within the thresholds (default: the published ones).

    The reason is the first threshold that does not hold, in their order; the numbers are all of them, kept or not.
    """
    thresholds = thresholds or Thresholds()
    numbers = measure(text)
    for field in fields(thresholds):
        bound, _, name = field.name.partition("_")
        limit = getattr(thresholds, field.name)
        if limit is not None and (numbers[name] < limit if bound == "min" else numbers[name] > limit):
            return Decision("quality_rules", False, field.name, numbers)
    return Decision("quality_rules", True, "", numbers)


def measure(text: str) -> dict[str, float | int]:
    """The number behind each threshold, under its name without min_ and max_."""
    words = text.split()
    count = max(1, len(words))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    lengths = list(map(len, words))
    numbers = {
        "words": len(words),
        "mean_word_length": sum(lengths) / count,
        "longest_word": max(lengths, default=0),
        "hash_ratio": text.count("#") / count,
        "ellipsis_ratio": len(_ELLIPSIS.findall(text)) / count,
        "bullet_lines": sum(line.startswith(BULLETS) for line in lines) / max(1, len(lines)),
        "ellipsis_lines": sum(line.endswith(("...", "\u2026")) for line in lines) / max(1, len(lines)),
        "alphabetic_words": sum(word.isalpha() or bool(_LETTER.search(word)) for word in words) / count,
        "stop_words": len(STOP_WORDS.intersection(text.lower().split())),
        "sentences": len(_SENTENCE_END.findall(text)),
    }
    paragraphs = [paragraph.strip() for paragraph in _PARAGRAPHS.split(text) if paragraph.strip()]
    for unit, parts in (("line", lines), ("paragraph", paragraphs)):
        duplicates, characters = _duplicates(parts)
        numbers[f"duplicate_{unit}s"] = duplicates / max(1, len(parts))
        numbers[f"duplicate_{unit}_characters"] = characters / max(1, len(text))
    return numbers | _repetition(words)


def _duplicates(parts: list[str]) -> tuple[int, int]:
    """How many of `parts` stood there before, and their characters."""
    seen: set[str] = set()
    again = [part for part in parts if part in seen or seen.add(part)]
    return len(again), sum(map(len, again))


def _repetition(words: list[str]) -> dict[str, float]:
    """Shares of the words' characters: in the commonest 2- to 4-gram, and in 5- to 10-grams that stood there before."""
    seen: dict[str, int] = {}
    ids = np.array([seen.setdefault(word, len(seen)) for word in words], np.uint64)
    ends = np.cumsum([0, *map(len, words)])
    characters = max(1, ends[-1])
    shares = {f"top_{size}_gram_characters": 0.0 for size in TOP_SIZES}
    shares |= {f"duplicate_{size}_gram_characters": 0.0 for size in DUPLICATE_SIZES}
    for size in (*TOP_SIZES, *DUPLICATE_SIZES):
        grams = ngram_hashes(ids, size)
        in_order = np.sort(grams)
        if not (in_order[1:] == in_order[:-1]).any():
            break  # nor does any longer one occur twice
        _, first, counts = np.unique(grams, return_index=True, return_counts=True)
        if size in TOP_SIZES:
            commonest = first[counts == counts.max()]
            covered = counts.max() * (ends[commonest + size] - ends[commonest]).max()
            shares[f"top_{size}_gram_characters"] = min(1.0, float(covered / characters))  # "ha ha ha" overlaps itself
        else:
            again = np.setdiff1d(np.arange(len(grams)), first, assume_unique=True)
            depth = np.zeros(len(words) + 1, np.int64)
            np.add.at(depth, again, 1)
            np.add.at(depth, again + size, -1)
            inside = np.cumsum(depth)[:-1] > 0
            shares[f"duplicate_{size}_gram_characters"] = float(np.diff(ends)[inside].sum() / characters)
    return shares
