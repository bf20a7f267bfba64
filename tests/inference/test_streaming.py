"""Text is given out as far as it is certain, and in the end all of it up to the first stop string."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import byte_tokenizer

from gpt_jax.errors import UserError
from gpt_jax.inference.streaming import UNKNOWN, TextStream, text_of

BYTES = byte_tokenizer()
STOPS = st.lists(st.text("ab\nü", min_size=1, max_size=4), max_size=3)


@settings(max_examples=200, deadline=None)
@given(
    text=st.text("ab\nü€😀", max_size=60), stop=STOPS, cuts=st.lists(st.integers(0, 200), max_size=6), data=st.data()
)
def test_the_pieces_are_the_text_up_to_the_first_stop_string(text, stop, cuts, data):
    ids = BYTES.encode(text)
    prompt = BYTES.encode(data.draw(st.text("a €", max_size=12)))
    stream = TextStream(BYTES, stop, prompt)
    pieces = [stream.push(part) for part in np.split(ids, sorted(min(cut, len(ids)) for cut in cuts))]
    so_far = ""
    for piece in pieces:
        so_far += piece
        assert text.startswith(so_far) and UNKNOWN not in piece
    end = min((text.index(s) for s in stop if s in text), default=len(text))
    assert so_far + stream.finish() == text[:end] == stream.text
    assert (stream.stopped is not None) == any(s in text for s in stop)


def test_a_character_is_held_back_until_its_last_byte():
    stream = TextStream(BYTES)
    assert [stream.push([byte]) for byte in "a€".encode()] == ["a", "", "", "€"]


def test_what_may_begin_a_stop_string_is_held_back_until_it_does_not():
    stream = TextStream(BYTES, ["\n\nQ:"])
    assert stream.push(BYTES.encode("A\n\n")) == "A"
    assert stream.push(BYTES.encode("Q")) == ""
    assert stream.push(BYTES.encode("u")) == "\n\nQu"
    assert stream.push(BYTES.encode("\n\nQ: more")) == "" and stream.stopped == "\n\nQ:"
    assert stream.push(BYTES.encode("never")) == stream.finish() == ""


def test_bytes_that_never_become_a_character_are_shown_as_such():
    assert text_of(BYTES, [0xE2, 0x82]) == UNKNOWN
    assert text_of(BYTES, [97, 0xFF, 98]) == f"a{UNKNOWN}b"


def test_an_empty_stop_string_is_refused():
    with pytest.raises(UserError, match="empty stop string"):
        TextStream(BYTES, ["x", ""])


def test_one_stop_string_may_stand_alone():
    assert text_of(BYTES, BYTES.encode("No END here"), stop="END") == "No "
