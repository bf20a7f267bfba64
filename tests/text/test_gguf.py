"""The tokenizer inside a GGUF file gives the ids of the one it was made from."""

import json
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabularies import TEXT, small_byte_level, small_llama

from gpt_jax.errors import UserError
from gpt_jax.text.gguf import read_tokenizer, tokenizer_from_metadata
from gpt_jax.text.imported import open_tokenizer

pytest.importorskip("tokenizers", reason="the extra 'gguf' is not installed")

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "tokenizers" / "smollm2.json"
END = "<|endoftext|>"


@pytest.fixture(scope="module")
def smollm2(smollm2_file):
    return open_tokenizer(smollm2_file)


def test_smollm2_gives_the_ids_of_transformers(smollm2):
    golden = json.loads(GOLDEN.read_text())
    assert [ids.tolist() for ids in smollm2.encode_batch(golden["texts"])] == golden["ids"]
    assert smollm2.vocab_size == golden["vocab_size"]
    assert smollm2.specials.end_of_text == golden["eos_token_id"]
    assert smollm2.symbol_names["eos_token"] == golden["eos_token"]
    assert smollm2.symbol_names["bos_token"] == golden["bos_token"]
    assert smollm2.chat_template == golden["chat_template"]
    assert smollm2.specials.beginning_of_text is None  # it has the symbol, but nothing begins with it unasked


def test_smollm2_sets_every_digit_apart(smollm2):
    assert [smollm2.decode([id]) for id in smollm2.encode("a 12½")] == ["a", " ", "1", "2", "½"]


def byte_level_metadata(**changes):
    pieces, merges, document = small_byte_level(first=["<s>"])
    special = {token["content"] for token in document["added_tokens"]}
    metadata = {
        "ggml.model": "gpt2",
        "ggml.pre": "gpt-2",
        "ggml.tokens": list(pieces),
        "ggml.token_type": [3 if piece in special else 1 for piece in pieces],
        "ggml.merges": [" ".join(merge) for merge in merges],
        "ggml.bos_token_id": 0,
        "ggml.eos_token_id": pieces[END],
        "chat_template": "{{ messages }}",
        **{name.replace("ggml_", "ggml."): value for name, value in changes.items()},
    }
    return {f"tokenizer.{name}": value for name, value in metadata.items() if value is not None}


def pieces_of(metadata, text):
    tokenizer = tokenizer_from_metadata(metadata)
    return [tokenizer.decode([id]) for id in tokenizer.encode(text)]


@pytest.mark.parametrize(
    "pre, pieces",
    [
        (None, ["123", "4", " the", "cat"]),
        ("default", ["123", "4", " the", "cat"]),
        ("gpt-2", ["123", "4", " the", "cat"]),
        ("smollm", ["1", "2", "3", "4", " the", "cat"]),
        ("llama-bpe", ["123", "4", " the", "cat"]),
        ("qwen2", ["1", "2", "3", "4", " the", "cat"]),
    ],
)
def test_the_named_pattern_decides_where_text_is_cut(pre, pieces):
    assert pieces_of(byte_level_metadata(ggml_pre=pre), "1234 thecat") == pieces


def test_llama3_knows_no_number_of_four_digits_and_gpt2_does():
    pieces, merges, _ = small_byte_level()
    tokens = [*pieces, "1234"]
    changes = {
        "ggml_tokens": tokens,
        "ggml_token_type": [1] * len(tokens),
        "ggml_merges": [*map(" ".join, merges), "123 4"],
        "ggml_bos_token_id": None,
        "ggml_eos_token_id": pieces[END],
    }
    assert pieces_of(byte_level_metadata(**changes), "1234") == ["1234"]
    assert pieces_of(byte_level_metadata(**changes, ggml_pre="llama-bpe"), "1234") == ["123", "4"]


def test_symbols_and_chat_template_come_from_the_file():
    tokenizer = tokenizer_from_metadata(byte_level_metadata(ggml_add_bos_token=True))
    assert tokenizer.specials.beginning_of_text == 0
    assert tokenizer.symbol_names == {"eos_token": END, "bos_token": "<s>"}
    assert tokenizer.chat_template == "{{ messages }}"
    assert not set(tokenizer.encode(f"<s>{END}")) & {0, tokenizer.specials.end_of_text}
    assert tokenizer_from_metadata(byte_level_metadata()).specials.beginning_of_text is None


@pytest.mark.parametrize("pre, begins", [("llama-bpe", True), ("llama3", True), ("llama-v3", True), ("qwen2", False)])
def test_llama_3s_patterns_begin_texts_unless_the_file_says_otherwise(pre, begins):
    def beginning(**changes):
        return tokenizer_from_metadata(byte_level_metadata(ggml_pre=pre, **changes)).specials.beginning_of_text

    assert beginning() == (0 if begins else None)
    assert beginning(ggml_add_bos_token=True) == 0
    assert beginning(ggml_add_bos_token=False) is None
    assert beginning(ggml_bos_token_id=None) is None


@pytest.fixture(scope="module")
def llama():
    """A SentencePiece model and the tokenizer of its pieces as a GGUF file holds them."""
    model = sentencepiece.SentencePieceProcessor(model_proto=small_llama())
    return model, tokenizer_from_metadata(llama_metadata(model))


def llama_metadata(model, **changes):
    ids = range(model.vocab_size())
    kinds = [2 if model.is_unknown(id) else 3 if model.is_control(id) else 6 if model.is_byte(id) else 1 for id in ids]
    metadata = {
        "ggml.model": "llama",
        "ggml.pre": "default",
        "ggml.tokens": [model.id_to_piece(id) for id in ids],
        "ggml.scores": [model.get_score(id) for id in ids],
        "ggml.token_type": kinds,
        "ggml.bos_token_id": model.bos_id(),
        "ggml.eos_token_id": model.eos_id(),
        "ggml.unknown_token_id": model.unk_id(),
        **{name.replace("ggml_", "ggml."): value for name, value in changes.items()},
    }
    return {f"tokenizer.{name}": value for name, value in metadata.items() if value is not None}


likely_text = st.lists(
    st.sampled_from([*TEXT.split()[:30], " ", "  ", "\n", "\t", "\0", "é", "日", "<s>", "</s>", "<unk>", "<0x41>"])
).map("".join)
no_space_sign = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"), max_size=40)


@given(text=likely_text | no_space_sign)
@settings(max_examples=300, deadline=None)
def test_a_llama_vocabulary_gives_the_ids_of_sentencepiece(llama, text):
    model, tokenizer = llama
    assert tokenizer.encode(text).tolist() == model.encode(text)
    assert tokenizer.decode(model.encode(text)) == text


def test_a_llama_vocabulary_begins_texts_unless_it_says_otherwise(llama):
    model, tokenizer = llama
    assert tokenizer.specials.beginning_of_text == model.bos_id()
    other = tokenizer_from_metadata(llama_metadata(model, ggml_add_bos_token=False, ggml_add_space_prefix=False))
    assert other.specials.beginning_of_text is None
    assert (
        other.encode("the").tolist() == tokenizer.encode("the").tolist()[1:] or other.decode(other.encode("a")) == "a"
    )
    assert len(other.encode("日")) == len(tokenizer.encode("日")) - 1


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"ggml_model": "rwkv"}, "kind 'rwkv'; known are 'gpt2' .* 'llama'"),
        ({"ggml_model": None}, "no tokenizer.ggml.model"),
        ({"ggml_pre": "qwen-2"}, "'qwen-2' .*known are default, gpt-2, smollm, llama-bpe.*Did you mean 'qwen2'"),
        ({"ggml_tokens": None}, "no tokenizer.ggml.tokens"),
        ({"ggml_tokens": ["a", "a"], "ggml_token_type": [1, 1]}, "holds a token twice"),
        ({"ggml_token_type": [1, 1]}, "token_type has 2 values for"),
        ({"ggml_merges": None}, "no tokenizer.ggml.merges"),
        ({"ggml_merges": ["t h e"]}, "merge 1 .* 't h e'"),
        ({"ggml_merges": ["q z"]}, "merge 1 .* 'q z'"),
        ({"ggml_eos_token_id": None}, "does not say which token ends a text"),
        ({"ggml_eos_token_id": 70_000}, "eos_token_id is 70000, but the vocabulary ends at"),
    ],
)
def test_what_is_missing_or_does_not_fit_is_named(changes, message):
    with pytest.raises(UserError, match=f"x.gguf.*{message}"):
        tokenizer_from_metadata(byte_level_metadata(**changes), "x.gguf")


def test_a_truncated_file_is_named(smollm2_file, tmp_path):
    for size in (0, 3, 100, 1_000_000):
        (tmp_path / "cut.gguf").write_bytes(smollm2_file.read_bytes()[:size])
        with pytest.raises(UserError, match="cut.gguf cannot be read as a GGUF file"):
            read_tokenizer(tmp_path / "cut.gguf")
    with pytest.raises(UserError, match="absent.gguf cannot be read"):
        read_tokenizer(tmp_path / "absent.gguf")
