"""Figure 1 of the paper: where the symbols stand, what is cut, and what swapping and permuting do."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from words import DELIMITER, EXTRACT, START, Words

from gpt_jax.errors import UserError
from gpt_jax.tasks.examples import Classification, Entailment, Example, MultipleChoice, Similarity
from gpt_jax.tasks.transforms import arrange, encode, part_limit, symbols_of
from gpt_jax.text.tokenizer import SpecialIds

texts = st.lists(st.sampled_from("one two three four five six seven".split()), min_size=1, max_size=30).map(" ".join)
contexts = st.integers(6, 40)


def encoded(inputs, context_length=64, tokenizer=None):
    return encode([Example(inputs, 0, "0", "table.csv, line 1")], tokenizer or Words(), context_length)


def sequences(inputs, context_length=64, tokenizer=None):
    return [list(sequence) for sequence in encoded(inputs, context_length, tokenizer).sequences[0]]


def test_the_four_transformations_are_those_of_figure_1():
    words = Words()
    a, bc, d, e = (list(words.encode(text)) for text in ("a", "b c", "d", "e"))
    assert sequences(Classification("b c"), tokenizer=words) == [[START, *bc, EXTRACT]]
    assert sequences(Entailment("a", "b c"), tokenizer=words) == [[START, *a, DELIMITER, *bc, EXTRACT]]
    assert sequences(Similarity("a", "b c"), tokenizer=words) == [
        [START, *a, DELIMITER, *bc, EXTRACT],
        [START, *bc, DELIMITER, *a, EXTRACT],
    ]
    assert sequences(MultipleChoice("a", ("d", "e", "b c")), tokenizer=words) == [
        [START, *a, DELIMITER, *answer, EXTRACT] for answer in (d, e, bc)
    ]
    assert sequences(MultipleChoice("a", ("d", "e"), question="b c"), tokenizer=words) == [
        [START, *a, *bc, DELIMITER, *answer, EXTRACT] for answer in (d, e)
    ]


@given(texts, texts, texts, contexts)
def test_every_sequence_fits_and_has_its_symbols_once_each_in_their_places(a, b, c, context_length):
    for inputs in (Classification(a), Entailment(a, b), Similarity(a, b), MultipleChoice(a, (b, c), question=c)):
        delimiters = 0 if isinstance(inputs, Classification) else 1
        for [*sequence] in sequences(inputs, context_length):
            assert len(sequence) <= context_length - delimiters
            assert sequence[0] == START and sequence[-1] == EXTRACT
            assert [sequence.count(symbol) for symbol in (START, DELIMITER, EXTRACT)] == [1, delimiters, 1]


@given(texts, texts, contexts)
def test_each_part_alone_keeps_its_first_tokens(a, b, context_length):
    words = Words()
    inputs = Entailment(a, b)
    limit = context_length // 2 - 2
    premise, hypothesis = words.encode(a), words.encode(b)
    expected = [START, *premise[:limit], DELIMITER, *hypothesis[:limit], EXTRACT]
    assert part_limit(inputs, context_length) == limit
    assert sequences(inputs, context_length, words) == [expected]
    result = encoded(inputs, context_length, words)
    assert (result.parts, result.truncated_parts) == (2, (len(premise) > limit) + (len(hypothesis) > limit))


def test_openais_limit_is_254_tokens_of_512():
    assert part_limit(Entailment("a", "b"), 512) == 254


@given(texts, texts)
def test_swapping_the_texts_of_a_pair_swaps_its_sequences(a, b):
    words = Words()
    words.encode(f"{a} {b}")
    assert sequences(Similarity(a, b), 20, words) == sequences(Similarity(b, a), 20, words)[::-1]


@given(texts, st.lists(texts, min_size=2, max_size=5), st.randoms(use_true_random=False))
def test_permuting_the_answers_permutes_the_sequences(context, answers, random):
    words = Words()
    order = list(range(len(answers)))
    random.shuffle(order)
    plain = sequences(MultipleChoice(context, tuple(answers)), 20, words)
    permuted = sequences(MultipleChoice(context, tuple(answers[k] for k in order)), 20, words)
    assert permuted == [plain[k] for k in order]


@given(texts, texts, contexts)
def test_of_a_context_with_a_question_the_context_is_cut(context, question, context_length):
    words = Words()
    limit = context_length // 2 - 2
    inputs = MultipleChoice(context, ("x", "y"), question)
    sequence = sequences(inputs, context_length, words)[0]
    c, q = words.encode(context), words.encode(question)
    asked = sequence[1 : sequence.index(DELIMITER)]
    assert len(asked) == min(len(c) + len(q), limit)
    assert asked[max(0, limit - len(q)) if len(c) + len(q) > limit else len(c) :] == list(q[:limit])
    result = encoded(inputs, context_length, words)
    assert (result.parts, result.truncated_parts) == (3, int(len(c) + len(q) > limit))


def test_sequences_are_int32():
    assert all(sequence.dtype == np.int32 for sequence in encoded(Similarity("a b", "c")).sequences[0])


def test_many_examples_are_encoded_as_each_alone():
    words = Words()
    inputs = [Classification("a b"), Classification("c"), Classification("a b")]
    together = encode([Example(one, 0, "0", "here") for one in inputs], words, 16)
    assert [list(own[0]) for own in together.sequences] == [sequences(one, 16, words)[0] for one in inputs]


def test_a_text_without_tokens_is_named_with_its_place():
    class Deaf(Words):
        def encode(self, text):
            return super().encode(text.replace("\u200b", ""))

    with pytest.raises(UserError, match="table.csv, line 1: the tokenizer has no token for the text '\\\\u200b'"):
        encoded(Entailment("a", "\u200b"), tokenizer=Deaf())


def test_a_tokenizer_without_the_symbols_is_told_how_to_get_them():
    specials = dataclasses.replace(SpecialIds(pad=0, end_of_text=0), start=7)
    with pytest.raises(UserError, match="no symbol for delimiter, extract.*with_fine_tuning_symbols"):
        symbols_of(Words(specials))


def test_a_context_too_short_for_any_text_is_refused():
    assert sequences(Entailment("a b", "c"), 6) != []
    with pytest.raises(UserError, match="model.context_length=5 .* Expected at least 6"):
        encoded(Entailment("a", "b"), 5)
    with pytest.raises(UserError, match="model.context_length=2 .* Expected at least 3"):
        encoded(Classification("a"), 2)


def test_an_unknown_kind_of_input_is_a_bug():
    with pytest.raises(TypeError, match="no transformation for str"):
        arrange("text", [], symbols_of(Words()), 4)
