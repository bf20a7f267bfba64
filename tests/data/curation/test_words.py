"""Words of a text: the same ones, with the same hashes, whoever asks and wherever."""

import hashlib
import subprocess
import sys

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gpt_jax.data.curation import words
from gpt_jax.data.curation.words import combined, ngram_hashes, word_hashes, word_spans

TEXTS = st.lists(
    st.sampled_from(
        [
            "one",
            "Two,",
            "(three)",
            "--",
            "don't",
            "\u00c9t\u00e9",
            "\u4f60\u597d",
            "a\u597db",
            "\u3042",
            " ",
            "\n",
            "\u00a0",
            "\u3000",
            ".",
        ]
    )
    | st.text(max_size=6)
).map(" ".join) | st.text(max_size=40)


def test_a_words_hash_is_blake2b_of_its_lower_case_without_punctuation():
    assert word_hashes("  \u201cDon\u2019t!\u201d \u2014 $5").tolist() == [
        int.from_bytes(hashlib.blake2b(word, digest_size=8).digest(), "little") for word in (b"dont", b"5")
    ]
    assert word_hashes("").dtype == word_hashes("a").dtype == np.uint64


def test_a_word_is_the_same_in_every_unicode_form():
    assert word_hashes("\u00c9t\u00e9").tolist() == word_hashes("E\u0301te\u0301").tolist()


def test_vowel_signs_belong_to_their_word_and_ideographs_are_words():
    assert len(set(word_hashes("\u0915\u093f \u0915\u0940"))) == 2
    assert [*map(tuple, word_spans("ab\u4f60\u597d \u304b!"))] == [(0, 2), (2, 3), (3, 4), (5, 6)]


@given(TEXTS)
def test_there_is_a_span_for_every_hash_and_its_text_has_that_hash(text):
    hashes, spans = word_hashes(text), word_spans(text)
    assert spans.shape == (len(hashes), 2)
    for value, (start, stop) in zip(hashes, spans, strict=True):
        assert word_hashes(text[start:stop]).tolist() == [value]


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 6))
def test_ngrams_have_equal_hashes_exactly_where_their_words_are_equal(ids, size):
    hashes = ngram_hashes(np.array(ids, np.uint64), size)
    grams = [tuple(ids[i : i + size]) for i in range(len(ids) - size + 1)]
    assert len(hashes) == len(grams)
    assert len(set(hashes.tolist())) == len(set(grams)) == len(set(zip(hashes.tolist(), grams, strict=True)))


def test_hashes_are_those_of_other_processes_and_survive_a_full_cache(monkeypatch):
    text = "It was the best of times, it was the worst of times"
    code = f"from gpt_jax.data.curation.words import *; print(ngram_hashes(word_hashes({text!r}), 5).tolist())"
    elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    monkeypatch.setattr(words, "_CACHED_WORDS", 3)
    assert str(ngram_hashes(word_hashes(text), 5).tolist()) == elsewhere.strip()


GOLDEN = [6907659034911495900, 11933466875453692125]  # by Python's integers from the formula


def test_the_hashes_of_ngrams_are_these_on_every_machine():
    assert combined([np.array([1, 2], np.uint64), np.array([3, 3], np.uint64)]).tolist() == GOLDEN
