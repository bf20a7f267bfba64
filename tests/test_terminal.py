"""What strangers write cannot steer a terminal."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_jax import terminal


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@given(st.text())
def test_nothing_on_a_terminal_controls_it(text):
    screen = Screen()
    terminal.write(text, screen)
    assert len(screen.getvalue()) == len(text)
    assert not any(ord(c) < 32 and c not in "\n\t" or 0x7F <= ord(c) < 0xA0 for c in screen.getvalue())


@pytest.mark.parametrize("text", ["caf\u00e9 \u4e2d\u6587 \U0001f600\n\tindented", "\x1b[2J"])
def test_a_file_gets_the_text_as_it_stands(text):
    file = io.StringIO()
    terminal.write(text, file)
    assert file.getvalue() == text


def test_an_escape_is_a_sign_and_readable_text_stays():
    assert terminal.harmless("caf\u00e9\x1b[2J\x07\x9b\n") == "caf\u00e9\u241b[2J\u2407\ufffd\n"
