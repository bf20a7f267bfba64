"""Four tasks made of the books, one for each input transformation, so that fine-tuning needs no download.

books-author   classification    which of five authors wrote a passage
books-next     entailment        does the second passage follow the first, or does it stand in another book
books-same     similarity        do two passages come from the same book
books-choice   multiple choice   which of four passages, each of another book, follows

Training rows come from the part of each book that pretraining reads, validation and test rows from the first and the
second half of the rest. A passage is a run of whole sentences. Nothing is random: what is chosen, and in what order,
follows from hashes, so the rows are the same on every machine.
"""

import functools
import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_jax.data.books import LATIN_1, find_books
from gpt_jax.data.rows import Row
from gpt_jax.data.text_files import TextFile
from gpt_jax.errors import UserError

SPLITS = ("train", "valid", "test")
ROWS = {"train": 4000, "valid": 500, "test": 500}  # at the most; the books' held-out ends give some tasks fewer
HELD_OUT = 0.05  # what configs/pretrain.py holds out by default
AUTHORS = ("austen", "chesterton", "edgeworth", "melville", "shakespeare")
PASSAGES_OF_A_BOOK = {"train": 300, "valid": 50, "test": 50}  # so that the Bible is not half of everything
LONGEST = 2  # times the words that are asked for: what is longer is one sentence of Milton's, and left out

_PARAGRAPH_END = re.compile(r"\n\s*\n")
_SENTENCE_END = re.compile(r"""(?:(?<=[.!?])|(?<=[.!?]["')]))\s+(?=["'(]?[A-Z])""")
_VERSE_NUMBER = re.compile(r"\b\d+:\d+\s")  # the Bible's would give it away


@dataclass(frozen=True)
class Passage:
    """`text` of the book `book` (its file's stem), which begins with the `number`-th passage of its split."""

    book: str
    number: int
    text: str


def book_rows(address: str) -> Iterator[Row]:
    """The rows of `address`, TASK#SPLIT. UserError: no such split; the books are not installed."""
    task, _, split = address.partition("#")
    if split not in SPLITS:
        raise UserError(f"{address}: expected {task}# with one of {', '.join(SPLITS)} behind.")
    rows = sorted(BOOK_TASKS[task](split), key=lambda fields: _hash(task, fields["id"]))
    most = ROWS[split] // 2 if task == "books-choice" else ROWS[split]  # a question costs four sequences
    for number, fields in enumerate(rows[:most], 1):
        yield Row(fields, f"{address}, row {number}")


def _author_rows(split: str) -> list[dict[str, Any]]:
    passages = defaultdict(list)
    for book in _books():
        author = book.split("-")[0]
        if author in AUTHORS:
            passages[author] += _passages(book, split, (16,))
    count = min(len(own) for own in passages.values())
    return [
        {"id": _id(passage), "text": passage.text, "label": author}
        for author, own in passages.items()
        for passage in _shuffled(own)[: min(count, ROWS[split] // len(AUTHORS))]
    ]


def _next_rows(split: str) -> list[dict[str, Any]]:
    """Of each book's pairs, one half as they are, the other with the second passage of a pair from another book."""
    rows, apart = [], []
    for pairs in _pairs_of_books(split, (24, 24)):
        half = len(pairs) // 2
        rows += [(first, second, "follows") for first, second in pairs[:half]]
        apart += pairs[half : 2 * half]
    seconds = _shuffled([second for _, second in apart])
    for k, (first, _) in enumerate(apart):
        others = (seconds[(k + step) % len(seconds)] for step in range(len(seconds)))
        rows.append((first, next(other for other in others if other.book != first.book), "elsewhere"))
    return [_pair_row(*row) for row in rows]


def _same_rows(split: str) -> list[dict[str, Any]]:
    """Every passage once as a first one; the second is its neighbour in its book's shuffle, or another book's."""
    pools = [_shuffled(_passages(book, split, (24,)))[: PASSAGES_OF_A_BOOK[split]] for book in _books()]
    following = {passage: pool[k - 1] for pool in pools if len(pool) > 1 for k, passage in enumerate(pool)}
    everything = _shuffled(list(following))
    rows = []
    for k, passage in enumerate(everything):
        if k % 2:
            rows.append((passage, following[passage], "same"))
        else:
            others = (everything[(k + step) % len(everything)] for step in range(1, len(everything)))
            rows.append((passage, next(other for other in others if other.book != passage.book), "different"))
    return [_pair_row(*row) for row in rows]


def _pair_row(first: Passage, second: Passage, label: str) -> dict[str, Any]:
    return {"id": _id(first), "first": first.text, "second": second.text, "label": label}


def _choice_rows(split: str) -> list[dict[str, Any]]:
    """Every pair, its second passage among those of pairs from three other books."""
    pairs = [pair for own in _pairs_of_books(split, (24, 16)) for pair in own]
    seconds = _shuffled([second for _, second in pairs])
    rows = []
    for k, (context, answer) in enumerate(pairs):
        offered = {context.book: answer}
        for step in range(len(seconds)):
            other = seconds[(k + step) % len(seconds)]
            offered.setdefault(other.book, other)
            if len(offered) == 4:
                break
        answers = _shuffled(list(offered.values()), _id(context))
        rows.append(
            {
                "id": _id(context),
                "context": context.text,
                "answers": [passage.text for passage in answers],
                "label": answers.index(answer),
            }
        )
    return rows


BOOK_TASKS = {
    "books-author": _author_rows,
    "books-next": _next_rows,
    "books-same": _same_rows,
    "books-choice": _choice_rows,
}


def _pairs_of_books(split: str, words: tuple[int, int]) -> Iterator[list[tuple[Passage, Passage]]]:
    """Of each book, shuffled: a passage and the one that follows it; no passage is in two pairs."""
    for book in _books():
        passages = {passage.number: passage for passage in _passages(book, split, words)}
        firsts = [passage for number, passage in passages.items() if number % 2 == 0 and number + 1 in passages]
        yield [(first, passages[first.number + 1]) for first in _shuffled(firsts)][: PASSAGES_OF_A_BOOK[split]]


def _passages(book: str, split: str, words: Sequence[int]) -> list[Passage]:
    """The text cut after the first sentence end at which `words[number % len(words)]` words are reached.

    Passages that became too long, and the last one, are left out; the numbers of the others show the gap.
    """
    passages, sentences, count, number = [], [], 0, 0
    for sentence in _sentences(book, split):
        sentences.append(sentence)
        count += len(sentence.split())
        wanted = words[number % len(words)]
        if count >= wanted:
            if count <= LONGEST * wanted:
                passages.append(Passage(book, number, " ".join(sentences)))
            sentences, count, number = [], 0, number + 1
    return passages


@functools.cache
def _sentences(book: str, split: str) -> list[str]:
    """The sentences of `split`, each on one line; none crosses a paragraph's end."""
    path = _books()[book]
    file = TextFile(path, "latin-1" if path.name in LATIN_1 else "utf-8", HELD_OUT)
    text = "".join(next(file.documents("train" if split == "train" else "valid", path.stat().st_size)))
    paragraphs = (" ".join(_VERSE_NUMBER.sub("", paragraph).split()) for paragraph in _PARAGRAPH_END.split(text))
    sentences = [sentence for paragraph in paragraphs if paragraph for sentence in _SENTENCE_END.split(paragraph)]
    if split == "train":
        return sentences
    half = len(sentences) // 2
    return sentences[1:half] if split == "valid" else sentences[half:]  # the first one began before the cut


@functools.cache
def _books() -> dict[str, Path]:
    return {path.stem: path for path in find_books()}


def _id(passage: Passage) -> str:
    return f"{passage.book}-{passage.number}"


def _shuffled(passages: Sequence[Passage], key: str = "") -> list[Passage]:
    return sorted(passages, key=lambda passage: _hash(key, _id(passage)))


def _hash(*words: str) -> bytes:
    return hashlib.blake2b("/".join(words).encode(), digest_size=8).digest()
