"""Symbols for fine-tuning stand behind a vocabulary that lacks them, in OpenAI's order."""

import numpy as np
import pytest
from vocabularies import TEXT, small_byte_level, small_openai_gpt

from gpt_jax.errors import UserError
from gpt_jax.text.huggingface import HuggingFaceTokenizer
from gpt_jax.text.imported import open_tokenizer
from gpt_jax.text.sentencepiece import train
from gpt_jax.text.symbols import AppendedSymbols, missing_symbols, with_fine_tuning_symbols
from gpt_jax.text.tokenizer import load_tokenizer

pytest.importorskip("tokenizers", reason="the extra 'huggingface' is not installed")


@pytest.fixture
def base():
    return HuggingFaceTokenizer.from_json(small_byte_level()[2], {"eos_token": "<|endoftext|>"})


def test_the_missing_symbols_follow_the_vocabulary_in_openais_order(base):
    tokenizer = with_fine_tuning_symbols(base)
    size = base.vocab_size
    assert missing_symbols(base) == ("start", "delimiter", "extract")
    assert missing_symbols(tokenizer) == ()
    assert (tokenizer.specials.start, tokenizer.specials.delimiter, tokenizer.specials.extract) == (
        size,
        size + 1,
        size + 2,
    )
    assert tokenizer.vocab_size == size + 3
    assert tokenizer.specials.end_of_text == base.specials.end_of_text


def test_gpt1_gets_40481_ids(gpt1_folder):
    pytest.importorskip("spacy", reason="the extra 'gpt1' is not installed")
    tokenizer = with_fine_tuning_symbols(open_tokenizer(gpt1_folder))
    specials = tokenizer.specials
    assert (specials.start, specials.delimiter, specials.extract) == (40_478, 40_479, 40_480)
    assert tokenizer.vocab_size == 40_481


def test_text_keeps_its_ids_and_the_symbols_spell_nothing(base):
    tokenizer = with_fine_tuning_symbols(base)
    ids = tokenizer.encode(TEXT)
    assert ids.tolist() == base.encode(TEXT).tolist() == tokenizer.encode_batch([TEXT])[0].tolist()
    symbols = [tokenizer.specials.start, tokenizer.specials.delimiter, tokenizer.specials.extract]
    assert tokenizer.decode(np.array([symbols[0], *ids, *symbols[1:]])) == TEXT
    assert tokenizer.token_bytes.shape == (tokenizer.vocab_size,)
    assert not tokenizer.token_bytes[symbols].any()


def test_a_tokenizer_that_has_the_symbols_stays_as_it_is(base):
    own = train([TEXT], vocab_size=300)
    assert with_fine_tuning_symbols(own) is own
    tokenizer = with_fine_tuning_symbols(base)
    assert with_fine_tuning_symbols(tokenizer) is tokenizer


def test_symbols_survive_saving_and_change_the_fingerprint(base, tmp_path):
    tokenizer = with_fine_tuning_symbols(base)
    tokenizer.save(tmp_path)
    for again in (load_tokenizer(tmp_path), open_tokenizer(tmp_path)):
        assert again.fingerprint == tokenizer.fingerprint != base.fingerprint
        assert (again.specials, again.vocab_size) == (tokenizer.specials, tokenizer.vocab_size)
    one = AppendedSymbols(base, ["extract"])
    assert one.specials.extract == base.vocab_size
    assert with_fine_tuning_symbols(one).specials.start == base.vocab_size + 1
    assert len({one.fingerprint, tokenizer.fingerprint, with_fine_tuning_symbols(one).fingerprint}) == 3


def test_a_manifest_with_symbols_that_cannot_be_appended_is_refused(base, tmp_path):
    with_fine_tuning_symbols(base).save(tmp_path)
    manifest = tmp_path / "tokenizer.json"
    manifest.write_text(manifest.read_text().replace('"delimiter"', '"start"'))
    with pytest.raises(UserError, match="start, start, extract"):
        load_tokenizer(tmp_path)


def test_an_openai_gpt_tokenizer_is_extended_too(tmp_path):
    pytest.importorskip("spacy", reason="the extra 'gpt1' is not installed")
    base = open_tokenizer(small_openai_gpt(tmp_path))
    tokenizer = with_fine_tuning_symbols(base)
    assert tokenizer.decode([tokenizer.specials.start, *tokenizer.encode("the cat")]) == "the cat"
    assert tokenizer.kind == "openai-gpt"
