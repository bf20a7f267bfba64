"""GPT-1's tokenizer gives the ids that OpenAI's own pipeline gives, and says what is wrong with a file."""

import json
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from vocabularies import small_openai_gpt

from gpt_jax.errors import UserError
from gpt_jax.text import openai_gpt
from gpt_jax.text.openai_gpt import OpenAIGPTTokenizer, standardised
from gpt_jax.text.tokenizer import load_tokenizer

ftfy = pytest.importorskip("ftfy", reason="the extra 'gpt1' is not installed")
spacy = pytest.importorskip("spacy", reason="the extra 'gpt1' is not installed")

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "tokenizers" / "openai_gpt.json"
NLP = spacy.blank("en")
# What spaCy's patterns are made of (emoticons, abbreviations, contractions), to be put side by side and across spaces.
PATTERNS = sorted(NLP.tokenizer.rules)
PARTS = sorted({sign for pattern in PATTERNS for sign in pattern} | {"it", "'s", "s", "w", "/", "o", "vs", "-D", "3"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small_openai_gpt(tmp_path_factory.mktemp("gpt1"))


@pytest.fixture(scope="module")
def tokenizer(folder):
    return from_folder(folder)


def from_folder(folder):
    return OpenAIGPTTokenizer.from_files(folder / "encoder_bpe_40000.json", folder / "vocab_40000.bpe")


def whole_text_at_once(tokenizer, text):
    """The same pipeline without any shortcut: spaCy sees the whole text, BPE is done the slow way."""
    ids = []
    for token in NLP.tokenizer(standardised(ftfy.fix_text(text))):
        pieces = [*token.text.lower()]
        pieces[-1] += "</w>"
        if pieces == ["\n", " </w>"]:
            pieces = ["\n</w>"]
        for left, right in (
            tokenizer.merges * 3
        ):  # the small vocabulary's later merges never make an earlier one's parts
            place = 0
            while place + 1 < len(pieces):
                if (pieces[place], pieces[place + 1]) == (left, right):
                    pieces[place : place + 2] = [left + right]
                place += 1
        ids += [tokenizer.vocabulary.get(piece, 0) for piece in pieces]
    return ids


def test_the_golden_sentences_get_the_ids_of_openais_pipeline(gpt1_folder):
    tokenizer = from_folder(gpt1_folder)
    golden = json.loads(GOLDEN.read_text())
    assert [ids.tolist() for ids in tokenizer.encode_batch(golden["texts"])] == golden["ids"]
    assert tokenizer.vocab_size == 40_478
    assert (tokenizer.specials.pad, tokenizer.specials.end_of_text) == (0, 40_477)


likely_text = st.lists(st.sampled_from(PATTERNS) | st.sampled_from(PARTS) | st.sampled_from(" \n.")).map("".join)
likely_words = st.lists(st.sampled_from(PATTERNS) | st.sampled_from(PARTS)).map(" ".join)


@given(text=likely_text | likely_words | st.text(st.characters(exclude_categories=["Cs"])))
@example("w / o : ' (")  # what looks like a pattern with spaces in it keeps spaCy from finding a shorter one
@example("&lt; &amp;lt; <b> &lt;")
@example(" \n\n the cat\r\nthe\x85cat\u2028the cat \n")
@settings(max_examples=500, deadline=None)
def test_the_ids_of_a_text_are_those_of_the_whole_text_seen_at_once(tokenizer, text):
    assert tokenizer.encode(text).tolist() == whole_text_at_once(tokenizer, text)


def test_words_that_spacy_must_see_together_are_found(tokenizer):
    chooser = random.Random(0)
    texts = ["".join(chooser.choice(PATTERNS) + chooser.choice(["", " "]) for _ in range(12)) for _ in range(1500)]
    assert [ids.tolist() for ids in tokenizer.encode_batch(texts)] == [whole_text_at_once(tokenizer, t) for t in texts]


def test_punctuation_is_set_apart_but_not_the_backslash():
    assert standardised("a,b--c¦d\\e’s…") == "a , b -- c¦d\\e’s..."
    assert standardised("(x)  [y]\t{z} \n\n *_*!?!?") == "( x ) [ y ] { z } \n * _ * ! ? ! ?"


def test_text_comes_back_normalised(tokenizer):
    text = "The  CAT isn’t\n\n  here…"
    assert tokenizer.decode(tokenizer.encode(text)) == "the cat is n't\nhere ..."
    assert not tokenizer.lossless


def test_a_token_counts_the_bytes_that_it_spells_and_its_space(tokenizer):
    ids = tokenizer.encode("The cat, the café.")
    spelled = tokenizer.decode(ids)
    assert spelled == "the cat , the café ."
    assert tokenizer.token_bytes[ids].sum() == len(spelled.encode()) + 1
    assert tokenizer.token_bytes[tokenizer.specials.pad] == 0


def test_a_character_outside_the_vocabulary_is_unknown_and_lost(tokenizer):
    ids = tokenizer.encode("the Ж cat")
    assert ids.tolist().count(0) == 1
    assert tokenizer.decode(ids) == "the cat"


def test_nothing_gives_nothing(tokenizer):
    assert tokenizer.encode("").shape == (0,) and tokenizer.encode("").dtype == np.int32
    assert [len(ids) for ids in tokenizer.encode_batch(["", " \n ", "the"])] == [0, 0, 1]


def test_forgetting_words_changes_no_id(tokenizer, folder, monkeypatch):
    text = "the cat vs . it 's that, w / o Mr. Smith... " * 3 + "other words\n" * 3
    monkeypatch.setattr(openai_gpt, "_REMEMBERED_WORDS", 3)
    assert from_folder(folder).encode(text).tolist() == tokenizer.encode(text).tolist()


def test_a_lone_surrogate_is_a_clear_error(tokenizer):
    with pytest.raises(UserError, match="U\\+D800 at character 3"):
        tokenizer.encode("abc\ud800")


def test_a_saved_tokenizer_loads_as_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    for again in (load_tokenizer(tmp_path), pickle.loads(pickle.dumps(tokenizer))):
        assert again.fingerprint == tokenizer.fingerprint
        assert again.encode("That's the cat.").tolist() == tokenizer.encode("That's the cat.").tolist()


def test_other_merges_have_another_fingerprint(tokenizer):
    other = OpenAIGPTTokenizer(tokenizer.vocabulary, tokenizer.merges[::-1])
    assert other.fingerprint != tokenizer.fingerprint


def spoil(folder, tmp_path, name, change):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / name).write_bytes(change((tmp_path / name).read_bytes()))
    return tmp_path


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("encoder_bpe_40000.json", lambda data: data[:-9], "encoder_bpe_40000.json is not JSON .*cut short"),
        ("encoder_bpe_40000.json", lambda data: b'["a"]', "is not a vocabulary"),
        ("encoder_bpe_40000.json", lambda data: data.replace(b': 7, "', b': 7000, "'), "7 is missing"),
        ("encoder_bpe_40000.json", lambda data: data.replace(b': 7, "', b': 6, "'), "6 occurs twice"),
        ("encoder_bpe_40000.json", lambda data: data.replace(b"<unk>", b"<eos>"), "lacks '<unk>'"),
        ("encoder_bpe_40000.json", lambda data: b"\xff\xfe" + data, "is not UTF-8"),
        ("vocab_40000.bpe", lambda data: data.partition(b"\n")[2], "does not begin with the line '#version"),
        ("vocab_40000.bpe", lambda data: data[:-1], "does not end in a newline: it was cut short"),
        ("vocab_40000.bpe", lambda data: data[: data.index(b"th a\n")], "4 more that no merge makes"),
        ("vocab_40000.bpe", lambda data: data.replace(b"t h\n", b"t h e\n"), "Merge 1 .* is 't h e'"),
        ("vocab_40000.bpe", lambda data: data + b"q z\n", "Merge 9 .* needs the piece 'qz'"),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(folder, tmp_path, name, change, message):
    with pytest.raises(UserError, match=message):
        from_folder(spoil(folder, tmp_path, name, change))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="encoder_bpe_40000.json cannot be read: No such file"):
        from_folder(tmp_path)
