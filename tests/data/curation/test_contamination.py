"""What shares 13 words with an evaluation set goes, with exactly 200 characters on each side, and nothing else goes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_jax.data.curation.contamination import (
    common,
    count,
    cut,
    evaluation_grams,
    evaluation_ngram_size,
    find,
)
from gpt_jax.errors import UserError

EVALUATION = [
    "How many miles of coast did the two surveyors walk before the first snow of that winter fell on them?",
    "She poured the tea, counted the spoons twice, and only then told her guests what the captain had written.",
]
GRAMS = evaluation_grams(EVALUATION)
WORDS = EVALUATION[0].split()
FILLER = st.lists(st.integers(0, 10**6).map(lambda number: f"w{number}"), max_size=120).map(" ".join)
SPACES = st.sampled_from([" ", "\n", "  ", " \t", "\u00a0"])


def spoilt(words, draw):
    """The same words for a reader: other case, punctuation and spaces."""
    marks = st.sampled_from(["{}", "{},", '"{}"', "({}", "{}\u2026", "\u00ab{}"])
    return "".join(draw(marks).format(draw(st.sampled_from([word, word.upper()]))) + draw(SPACES) for word in words)


@settings(deadline=None)
@given(st.data())
def test_every_planted_run_of_13_words_is_found_where_it_stands_and_nothing_else(data):
    """The oracle knows where it planted: the hit starts and stops with the planted words, to the character."""
    text, planted = "", []
    for part in data.draw(st.lists(st.sampled_from(["filler", "long", "short"]), max_size=6)):
        if part == "filler":
            text += data.draw(FILLER) + "\n"
            continue
        source = data.draw(st.sampled_from(EVALUATION)).split()
        size = data.draw(st.integers(13, len(source)) if part == "long" else st.integers(1, 12))
        first = data.draw(st.integers(0, len(source) - size))
        passage = spoilt(source[first : first + size], data.draw)
        text += f"before{len(text)} "
        if part == "long":
            planted.append((len(text), len(text) + len(passage.rstrip())))
        text += passage + f"after{len(text)} "
    assert find(text, GRAMS) == planted
    assert len(count(text, GRAMS)) > 0 or not planted


@settings(deadline=None)
@given(st.lists(st.tuples(FILLER, st.booleans()), min_size=1, max_size=14))
def test_the_pieces_are_the_exact_text_between_the_windows(parts):
    text, covered = "", []
    for filler, dirty in parts:
        text += filler + " \u2014 "
        if dirty:
            covered += range(len(text) - 200, len(text) + len(EVALUATION[0]) + 200)
            text += EVALUATION[0] + " \u2014 "
    pieces, decision = cut(text, GRAMS)
    covered = set(covered)
    clean = "".join("\0" if place in covered else character for place, character in enumerate(text))
    expected = [piece for piece in clean.split("\0") if piece]
    if not covered:
        assert pieces == [text] and decision.kept and decision.numbers["characters_cut"] == 0
    elif len(expected) > 10:
        assert (pieces, decision.kept, decision.reason) == ([], False, "shredded")
    else:
        assert pieces == [piece for piece in expected if len(piece) >= 200]
        assert (decision.kept, decision.reason) == ((True, "") if pieces else (False, "scraps"))
        assert decision.numbers["characters_cut"] == len(text) - sum(map(len, pieces))
        assert decision.numbers["pieces"] == len(pieces)


def test_the_window_is_of_200_characters_and_so_is_the_least_piece():
    for filler in (399, 398):
        text = f"{'x' * filler} {EVALUATION[1]} {'y' * filler}"
        pieces, decision = cut(text, GRAMS)
        assert pieces == ([text[:200], text[-200:]] if filler == 399 else [])
        assert decision.reason == ("" if filler == 399 else "scraps")


def test_a_document_of_ten_pieces_stays_and_of_eleven_goes():
    filler = "x" * 1000
    for hits, kept in ((9, True), (10, False)):
        pieces, decision = cut(f" {EVALUATION[1]} ".join([filler] * (hits + 1)), GRAMS)
        assert decision.kept == kept and len(pieces) == (hits + 1 if kept else 0)


def test_a_clean_text_stays_whole_however_short():
    pieces, decision = cut("Short.", GRAMS)
    assert pieces == ["Short."] and decision.kept and decision.stage == "contamination"


def test_grams_of_more_than_ten_training_documents_do_not_count():
    documents = [EVALUATION[0]] * 11 + [EVALUATION[1]] * 10
    frequency = {}
    for document in documents:
        for gram in count(f"{document} {document}", GRAMS).tolist():  # twice in a document counts once
            frequency[gram] = frequency.get(gram, 0) + 1
    rare = np.setdiff1d(GRAMS, common(frequency))
    assert find(EVALUATION[0], rare) == []
    assert find(EVALUATION[1], rare) == [(0, len(EVALUATION[1]))]
    assert common(frequency).dtype == GRAMS.dtype == np.uint64 and len(common({})) == 0
    assert find(EVALUATION[1], np.setdiff1d(GRAMS, GRAMS)) == []


@pytest.mark.parametrize("lengths, size", [([3] * 50, 8), ([10] * 50, 10), ([40] * 50, 13), ([9] * 4 + [30] * 46, 9)])
def test_the_evaluation_side_takes_the_fifth_percentile_within_8_and_13(lengths, size):
    assert evaluation_ngram_size(["word " * length for length in lengths]) == size


def test_an_example_is_dirty_if_any_of_its_ngrams_was_found_in_training_text():
    examples = ["one two three four five six seven eight nine", "a b c d e f g h", "two three"]
    size = evaluation_ngram_size(examples)
    found = count("zero one two three four five six seven eight.", evaluation_grams(examples, size), size)
    assert [bool(find(example, found, size)) for example in examples] == [True, False, False]


def test_an_evaluation_set_in_which_nothing_can_be_found_is_refused():
    with pytest.raises(UserError, match="2 texts, none of 13 words or more.*fields"):
        evaluation_grams(["too short", "as well"])
    with pytest.raises(UserError, match="0 texts"):
        evaluation_grams([])
