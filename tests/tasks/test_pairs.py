"""Pairs become tokens as the standard harness makes them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_models import byte_tokenizer

from gpt_jax.errors import UserError
from gpt_jax.tasks.pairs import encode_pairs

TOKENIZER = byte_tokenizer()
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)


@given(TEXTS, TEXTS.filter(str.strip))
def test_spaces_at_the_end_of_a_context_belong_to_the_continuation(context, continuation):
    [sequence], [start] = (lambda p: (p.sequences, p.starts))(encode_pairs([(context, continuation)], TOKENIZER, 999))
    bare = context.rstrip()
    scored = TOKENIZER.decode(sequence[start:])
    assert scored == context[len(bare) :] + continuation
    if bare:
        assert TOKENIZER.decode(sequence[:start]) == bare
    else:
        assert sequence[:start].tolist() == [TOKENIZER.specials.end_of_text]


@given(TEXTS.filter(str.strip), TEXTS.filter(str.strip))
def test_tokens_are_those_of_lm_eval(context, continuation):
    TemplateLM = pytest.importorskip("lm_eval.api.model").TemplateLM

    class Plain:
        backend = "causal"

        def tok_encode(self, text):
            return TOKENIZER.encode(text).tolist()

    before, after = TemplateLM._encode_pair(Plain(), context, continuation)
    found = encode_pairs([(context, continuation)], TOKENIZER, 999)
    assert found.sequences[0].tolist() == before + after
    assert found.starts.tolist() == [len(before)]


def test_what_is_too_long_loses_its_first_tokens():
    found = encode_pairs([("abcdefgh", "ijk"), ("a", "bcdefgh"), ("a", "b")], TOKENIZER, 4)
    assert [TOKENIZER.decode(sequence) for sequence in found.sequences] == ["ghijk", "defgh", "ab"]
    assert found.starts.tolist() == [2, 1, 1] and found.truncated == 2
    assert found.scored_tokens.tolist() == [3, 4, 1]


def test_nothing_to_score_is_one_message():
    with pytest.raises(UserError, match="no token"):
        encode_pairs([("a", "")], TOKENIZER, 9)


def test_equal_texts_are_equal_tokens():
    found = encode_pairs([("a b", " c"), ("a b ", "c")], TOKENIZER, 99)
    np.testing.assert_array_equal(*found.sequences)
