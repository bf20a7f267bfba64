"""Each published threshold drops what it is there for, by its own name, and good prose passes them all."""

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_jax.data.curation.quality_rules import Thresholds, check, measure

PROSE = (
    "The road ran down to the river, and nobody had mended it since spring. We walked with the dog that belonged to "
    "my aunt. Rain had filled each rut. Two carts stood empty near a gate, their wheels sunk deep! Who would come for "
    "them? Nobody knew, though old Peter told us he might have seen some strangers pass at dusk."
)
NOTHING = {field.name: None for field in fields(Thresholds)}

BROKEN = {
    "min_words": "The end of it. And that. So be it.",
    "max_words": "word " * 100_001,
    "min_mean_word_length": "a b. to be. of it. " * 20,
    "max_mean_word_length": "extraordinarily incomprehensible. " * 30,
    "max_longest_word": PROSE + " " + "x" * 1001,
    "max_hash_ratio": PROSE + " #" * 20,
    "max_ellipsis_ratio": PROSE + " ...\u2026" * 6,
    "max_bullet_lines": "\n".join(f"\u2022 {word}" for word in PROSE.split()),
    "max_ellipsis_lines": PROSE.replace(" ", "...\n"),
    "min_alphabetic_words": PROSE + " 12 34 56" * 10,
    "min_stop_words": "Der Hund lief. Die Katze schlief. Niemand kam. " * 8,
    "min_sentences": PROSE.replace(".", ",").replace("!", ",").replace("?", ","),
    "max_duplicate_lines": "One line.\nOne line.\nOther line.",
    "max_duplicate_paragraphs": "One here.\n\nOne here.\n\nTwo there.",
    "max_duplicate_line_characters": f"{PROSE}\n{PROSE}\nShort.\nOf.\nThe.\nEnd.\nOh.",
    "max_duplicate_paragraph_characters": f"{PROSE}\n\n{PROSE}\n\nShort.\n\nOf.\n\nThe.\n\nEnd.",
    "max_top_2_gram_characters": "buy now " * 20 + PROSE,
    "max_top_3_gram_characters": "buy it now " * 10 + PROSE,
    "max_top_4_gram_characters": "you buy it now " * 10 + PROSE,
} | {f"max_duplicate_{size}_gram_characters": f"{PROSE} {PROSE}" for size in range(5, 11)}


def test_good_prose_passes_and_its_numbers_are_told():
    decision = check(PROSE)
    assert decision.kept and decision.reason == "" and decision.stage == "quality_rules"
    assert decision.numbers["words"] == len(PROSE.split())
    assert {field.name.split("_", 1)[1] for field in fields(Thresholds)} == set(decision.numbers)


@pytest.mark.parametrize("name", BROKEN)
def test_each_rule_alone_drops_its_case_and_lets_prose_pass(name):
    only = Thresholds(**NOTHING | {name: getattr(Thresholds(), name)})
    assert check(PROSE, only).kept
    decision = check(BROKEN[name], only)
    assert (decision.kept, decision.reason) == (False, name)
    assert check(BROKEN[name], Thresholds(**NOTHING)).kept


def test_a_number_at_its_threshold_passes():
    assert check("word " * 50, Thresholds(**NOTHING | {"min_words": 50, "max_words": 50})).kept
    assert not check("word " * 49, Thresholds(**NOTHING | {"min_words": 50})).kept


def test_the_shares_of_repeated_ngrams_are_counted_by_hand():
    numbers = measure("aa bb cc aa bb dd ee")  # 14 characters of words; "aa bb" twice
    assert numbers["top_2_gram_characters"] == 8 / 14
    assert numbers["top_3_gram_characters"] == 0
    numbers = measure("a b c d e f xxxx a b c d e f")  # the second time of a..f: 6 of 16 characters
    assert numbers["duplicate_5_gram_characters"] == numbers["duplicate_6_gram_characters"] == 6 / 16
    assert numbers["duplicate_7_gram_characters"] == 0
    assert measure("ha " * 9)["top_2_gram_characters"] == 1


@given(
    st.lists(st.sampled_from("a b cc dd. \n \n\n ... - # 7 \u4f60\u597d".split(" ")), max_size=60).map(" ".join)
    | st.text()
)
def test_every_number_is_finite_and_every_share_lies_between_0_and_1(text):
    for name, value in measure(text).items():
        assert type(value) in (int, float) and value >= 0
        if name.startswith(("duplicate", "top", "bullet", "alphabetic")) or name.endswith("_lines"):
            assert value <= 1, name
