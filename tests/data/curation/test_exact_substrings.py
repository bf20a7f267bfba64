"""A passage that stands in several documents stays in the first, whole, and nowhere else."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_jax.data.curation.exact_substrings import AGAIN, FIRST, UNIQUE, cut, mark, windows


def passages_removed(texts, size):
    """What a runner does: windows of all documents by id, marked together, and each document cut by its own."""
    hashes = [windows(text, size) for text in texts]
    marks = np.split(mark(np.concatenate(hashes)), np.cumsum([len(own) for own in hashes])[:-1])
    return [cut(text, own, size) for text, own in zip(texts, marks, strict=True)]


def test_the_first_occurrence_stays_and_the_cut_is_exact():
    passage = "to be kept once, whatever happens!"
    texts = [f"Alpha (beta) {passage} Gamma.", f"Delta {passage}\n\nEpsilon", "zeta " + passage, passage]
    results = passages_removed(texts, 6)
    assert [text for text, _ in results] == [texts[0], "Delta Epsilon", "zeta ", ""]
    assert [decision.numbers["passages"] for _, decision in results] == [0, 1, 1, 1]
    assert [decision.reason for _, decision in results] == ["", "", "", "repeated"]
    assert results[1][1].numbers["characters_cut"] == len(passage) + 2 and not results[3][1].kept


def test_a_passage_one_word_too_short_stays():
    texts = ["a b c d e", "x a b c d y"]
    assert [text for text, _ in passages_removed(texts, 5)] == texts
    assert [text for text, _ in passages_removed(texts, 4)] == ["a b c d e", "x y"]


def test_words_that_repeat_themselves_stay_once():
    assert [text for text, _ in passages_removed(["ha " * 20], 5)] == ["ha " * 5]


def test_marks_do_not_depend_on_how_the_hashes_are_divided():
    hashes = np.random.default_rng(0).integers(0, 300, 1000).astype(np.uint64)
    marks = mark(hashes)
    apart = np.empty_like(marks)
    for part in range(3):
        apart[hashes % 3 == part] = mark(hashes[hashes % 3 == part])
    assert np.array_equal(marks, apart) and set(marks) == {UNIQUE, FIRST, AGAIN}
    first = [np.flatnonzero(hashes == value)[0] for value in set(hashes[marks == AGAIN])]
    assert set(first) == set(np.flatnonzero(marks == FIRST))


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), max_size=30), min_size=1, max_size=4), st.integers(2, 4))
def test_every_run_of_words_remains_somewhere_and_unique_words_are_never_cut(documents, size):
    texts = [" ".join(map(str, [*document, f"end{i}"])) for i, document in enumerate(documents)]
    left = [text.split() for text, _ in passages_removed(texts, size)]

    def grams(words):
        return {tuple(words[i : i + size]) for i in range(len(words) - size + 1)}

    repeated = [gram for words in map(str.split, texts) for gram in grams(words)]
    for gram in set(repeated):
        if repeated.count(gram) > 1:
            assert any(gram in grams(words) for words in left)
    assert all(f"end{i}" in words for i, words in enumerate(left))
