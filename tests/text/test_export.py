"""What is written for Hugging Face opens again as the same tokenizer."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from vocabularies import TEXT, small_byte_level, small_llama, small_openai_gpt

from gpt_jax.errors import UserError
from gpt_jax.text.export import save_huggingface, save_openai_files
from gpt_jax.text.huggingface import HuggingFaceTokenizer
from gpt_jax.text.imported import open_tokenizer
from gpt_jax.text.openai_gpt import OpenAIGPTTokenizer
from gpt_jax.text.sentencepiece import train
from gpt_jax.text.symbols import with_fine_tuning_symbols

tokenizers = pytest.importorskip("tokenizers", reason="the extra 'huggingface' is not installed")

PERIODIC = "abababab aaaa bbb abaab aabbaabaab " * 20 + "\n" + "ab aab aaab baba bab a b" * 20


@pytest.fixture(scope="module", params=[TEXT, PERIODIC], ids=["words", "periodic"])
def own(request, tmp_path_factory):
    """Our SentencePiece tokenizer, and what the `tokenizers` library alone makes of its export."""
    folder = tmp_path_factory.mktemp("own")
    tokenizer = train([request.param], vocab_size=305 if request.param == TEXT else 285)
    save_huggingface(tokenizer, folder)
    return tokenizer, tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")), open_tokenizer(folder)


# The documented exceptions: U+2581, and, for the library alone, the spelling of a special symbol.
SYMBOLS = ["<unk>", *(f"<|{name}|>" for name in ("pad", "end_of_text", "start", "delimiter", "extract"))]
any_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"), max_size=60)
likely_text = st.lists(
    st.sampled_from(
        [*TEXT.split()[:30], " ", "  ", "\n", "\n\n", "\r\n", "\t", "\0", "\u2585", "é", "日本", "<0x41>", *SYMBOLS]
    )
    | st.text("ab \n", max_size=20)
).map("".join)


@given(text=any_text | likely_text)
@example("\n\n\n \n\n")
@settings(max_examples=500, deadline=None)
def test_the_exported_sentencepiece_tokenizer_gives_the_same_ids(own, text):
    tokenizer, theirs, reopened = own
    ids = tokenizer.encode(text).tolist()
    assert reopened.encode(text).tolist() == ids
    assert theirs.decode(ids) == reopened.decode(ids) == text
    if not any(symbol in text for symbol in SYMBOLS):
        assert theirs.encode(text, add_special_tokens=False).ids == ids


def test_the_exported_sentencepiece_tokenizer_has_our_symbols(own):
    tokenizer, _, reopened = own
    assert reopened.specials == tokenizer.specials
    assert reopened.token_bytes.tolist() == tokenizer.token_bytes.tolist()


def test_a_unigram_model_is_refused(tmp_path):
    with pytest.raises(UserError, match="it is not BPE"):
        save_huggingface(train([TEXT], vocab_size=300, model_type="unigram"), tmp_path)
    assert not list(tmp_path.iterdir())


def reopened(tokenizer, folder):
    save_huggingface(tokenizer, folder)
    return open_tokenizer(folder)


def same(first, second):
    return all(
        getattr(first, name) == getattr(second, name)
        for name in ("kind", "specials", "vocab_size", "chat_template", "lossless")
    ) and all(
        value(first) == value(second)
        for value in (lambda t: t.token_bytes.tolist(), lambda t: t.encode("the cat, 12\n").tolist())
    )


@pytest.mark.parametrize("symbols", [False, True], ids=["plain", "with symbols"])
def test_a_hugging_face_tokenizer_comes_back(tmp_path, symbols):
    names = {"eos_token": "<|endoftext|>", "bos_token": "<s>"}
    tokenizer = HuggingFaceTokenizer.from_json(small_byte_level(first=["<s>"])[2], names, "{{ messages }}")
    tokenizer = with_fine_tuning_symbols(tokenizer) if symbols else tokenizer
    assert same(reopened(tokenizer, tmp_path), tokenizer)


def test_a_name_that_the_vocabulary_uses_already_is_not_taken(tmp_path):
    document = small_byte_level(first=["<|start|>"])[2]
    tokenizer = with_fine_tuning_symbols(HuggingFaceTokenizer.from_json(document, {"eos_token": "<|endoftext|>"}))
    assert reopened(tokenizer, tmp_path).specials == tokenizer.specials


def test_a_tokenizer_that_begins_its_texts_still_does(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(small_llama())
    tokenizer = open_tokenizer(tmp_path)
    again = reopened(tokenizer, tmp_path / "there")
    assert again.specials.beginning_of_text == tokenizer.specials.beginning_of_text == 1
    assert same(again, tokenizer)


@pytest.mark.parametrize("symbols", [False, True], ids=["plain", "with symbols"])
def test_an_openai_gpt_tokenizer_comes_back(tmp_path, symbols):
    pytest.importorskip("spacy", reason="the extra 'gpt1' is not installed")
    tokenizer = open_tokenizer(small_openai_gpt(tmp_path))
    tokenizer = with_fine_tuning_symbols(tokenizer) if symbols else tokenizer
    again = reopened(tokenizer, tmp_path / "there")
    assert same(again, tokenizer)
    config = json.loads((tmp_path / "there" / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "OpenAIGPTTokenizer"
    if symbols:
        assert again.decode([again.specials.start, *again.encode("_start_")]) == "_ start _"


@pytest.mark.parametrize("symbols", [False, True], ids=["plain", "with symbols"])
def test_openais_files_give_the_same_tokenizer_without_symbols(tmp_path, symbols):
    pytest.importorskip("spacy", reason="the extra 'gpt1' is not installed")
    names = ("vocab.json", "merges.txt")
    tokenizer = open_tokenizer(small_openai_gpt(tmp_path / "here", names))
    (tmp_path / "there").mkdir()
    save_openai_files(with_fine_tuning_symbols(tokenizer) if symbols else tokenizer, tmp_path / "there")
    files = [tmp_path / "there" / name for name in ("encoder_bpe_40000.json", "vocab_40000.bpe")]
    assert sorted((tmp_path / "there").iterdir()) == files
    assert OpenAIGPTTokenizer.from_files(*files).fingerprint == tokenizer.fingerprint
    assert open_tokenizer(tmp_path / "there").fingerprint == tokenizer.fingerprint


def test_a_tokenizer_of_another_kind_has_no_form_as_openais_files(tmp_path):
    tokenizer = HuggingFaceTokenizer.from_json(small_byte_level()[2], {"eos_token": "<|endoftext|>"})
    with pytest.raises(UserError, match="kind 'huggingface' has no form as OpenAI's GPT-1 files"):
        save_openai_files(tokenizer, tmp_path)
    assert not list(tmp_path.iterdir())
