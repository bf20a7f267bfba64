"""Clean-up mends what is broken in any language, drops boilerplate lines, and touches nothing else."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_jax.data.curation.cleanup import Cleanup, clean

PROSE = (
    "It was late.\n\n  An indented line of verse\n"
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u2014 \u4f60\u597d, \u05e9\u05dc\u05d5\u05dd\tand a tab"
)


def test_clean_text_in_any_script_stays_as_it_is():
    text, decision = clean(PROSE)
    assert text == PROSE
    assert decision.kept and decision.reason == "" and decision.stage == "cleanup"
    assert decision.numbers == {"characters_in": len(PROSE), "control_characters": 0, "characters_out": len(PROSE)}


@given(st.text(st.characters() | st.sampled_from("\r\n\x00\ufeff\u2028e\u0301"), max_size=60))
def test_what_comes_out_can_be_written_has_one_kind_of_line_end_and_cleans_to_itself(text):
    cleaned, decision = clean(text)
    cleaned.encode()
    assert unicodedata.is_normalized("NFC", cleaned)
    assert not any(
        unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
        for character in cleaned.replace("\n", "").replace("\t", "")
    )
    assert clean(cleaned)[0] == cleaned
    assert decision.kept == bool(cleaned)


def test_controls_surrogates_and_line_ends_are_mended_and_counted():
    text, decision = clean("\ufeffcafe\u0301\x00\x1b[0m \ud800soft\xadly\r\nnext\rlast\u2028\n\n\n\nend  \n")
    assert text == "caf\u00e9[0m softly\nnext\nlast\n\nend"
    assert decision.numbers["control_characters"] == 5


def test_joiners_and_mojibake_are_left_alone():
    for text in ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\U0001f469\u200d\U0001f4bb", "caf\u00c3\u00a9"):
        assert clean(text)[0] == text


def test_lines_that_every_page_repeats_go_and_are_counted_by_their_rule():
    text, decision = clean(
        "A story.\nPlease enable JavaScript\nRead our Privacy Policy.\nThis site uses cookies\nThe end."
    )
    assert text == "A story.\nThe end."
    assert decision.numbers["javascript_lines"] == 1 and decision.numbers["policy_lines"] == 2
    assert clean("Please enable JavaScript", Cleanup(javascript_lines=False))[0] == "Please enable JavaScript"


def test_the_rules_that_would_harm_verse_or_code_are_options():
    text = "Home | About\nA whole sentence stands here.\n\nToo short."
    rules = Cleanup(terminal_punctuation=True, min_line_words=3)
    assert clean(text)[0] == text
    cleaned, decision = clean(text, rules)
    assert cleaned == "A whole sentence stands here."
    assert decision.numbers["terminal_punctuation"] == decision.numbers["min_line_words"] == 1
    assert clean("\u8fd9\u662f\u4e00\u53e5\u3002", Cleanup(terminal_punctuation=True))[1].kept


@pytest.mark.parametrize(
    "text, rules, reason",
    [
        ("Lorem Ipsum dolor sit amet", Cleanup(), "lorem_ipsum"),
        ("if (x) { y }", Cleanup(curly_bracket_pages=True), "curly_bracket"),
        (" \x00\n ", Cleanup(), "empty"),
        ("We use cookies.", Cleanup(), "empty"),
    ],
)
def test_pages_are_dropped_with_a_reason(text, rules, reason):
    decision = clean(text, rules)[1]
    assert (decision.kept, decision.reason) == (False, reason)
    assert clean("if (x) { y }")[1].kept
