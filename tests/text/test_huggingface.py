"""Any tokenizer.json keeps our contract: its own ids, no symbol that a text could spell, every byte counted."""

import copy
import json
import pickle

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from vocabularies import TEXT, small_byte_level, small_gpt2, small_llama

from gpt_jax.errors import UserError
from gpt_jax.text.huggingface import HuggingFaceTokenizer
from gpt_jax.text.imported import open_tokenizer
from gpt_jax.text.sentencepiece_json import sentencepiece_document
from gpt_jax.text.tokenizer import load_tokenizer
from gpt_jax.text.tokenizer_json import LLAMA3, QWEN2, added_token, beginning_with, merges_by_score

pytest.importorskip("tokenizers", reason="the extra 'huggingface' is not installed")

END = "<|endoftext|>"
any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
likely_text = st.lists(
    st.sampled_from(
        [*TEXT.split()[:30], END, "<|", " ", "  ", "\n", "\r\n", "\t", "\0", "\x1c", "\x85", "\u00a0", "\u2028", "'LL"]
        + ["é", "e\u0301", "日本", "👩‍🚀", "½", "٣", "_", "\ufeff", "\u0378", "\U0010ffff", "don't", "1234567"]
    ),
    max_size=30,
).map("".join)


@pytest.fixture(scope="module")
def small():
    return HuggingFaceTokenizer.from_json(small_byte_level()[2], {"eos_token": END})


@pytest.fixture(scope="module")
def gpt2(gpt2_folder):
    return open_tokenizer(gpt2_folder)


def test_gpt2_gives_the_published_ids(gpt2):
    assert gpt2.encode("Hello, I'm a language model,").tolist() == [15496, 11, 314, 1101, 257, 3303, 2746, 11]
    assert (gpt2.vocab_size, gpt2.specials.end_of_text) == (50_257, 50_256)


@pytest.fixture(scope="module")
def tiktoken_gpt2(gpt2_folder):
    tiktoken = pytest.importorskip("tiktoken", reason="tiktoken is a second opinion on GPT-2's ids: extra 'test'")
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks

    ranks = data_gym_to_mergeable_bpe_ranks(str(gpt2_folder / "vocab.bpe"), str(gpt2_folder / "encoder.json"))
    pattern = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    return tiktoken.Encoding("gpt2", pat_str=pattern, mergeable_ranks=ranks, special_tokens={END: 50_256})


@given(text=any_text | likely_text)
@example(" leading, trailing  \n\n \n x\u2028\u3000y ")
@settings(max_examples=300, deadline=None)
def test_gpt2_agrees_with_tiktoken(gpt2, tiktoken_gpt2, text):
    assert gpt2.encode(text).tolist() == tiktoken_gpt2.encode_ordinary(text)


@given(text=any_text | likely_text)
@settings(max_examples=300, deadline=None)
def test_byte_level_text_comes_back_exactly_and_its_bytes_are_counted(small, text):
    ids = small.encode(text)
    assert ids.dtype == np.int32 and ids.ndim == 1
    assert small.decode(ids) == text
    assert small.token_bytes[ids].sum() == len(text.encode())
    assert small.specials.end_of_text not in ids


def test_what_is_not_lossless_says_so(small):
    document = small_byte_level()[2]
    assert small.lossless
    spaced = copy.deepcopy(document)
    spaced["pre_tokenizer"]["add_prefix_space"] = True
    lacking = copy.deepcopy(document)
    lacking["model"]["vocab"]["replacement"] = lacking["model"]["vocab"].pop("z")
    for other in (spaced, lacking, document | {"normalizer": {"type": "NFC"}}):
        assert not HuggingFaceTokenizer.from_json(other, {"eos_token": END}).lossless


def unigram():
    """A unigram vocabulary with the symbol "</s>" among its pieces, as those of T5 and XLM-R have."""
    pieces = [["<unk>", 0.0], ["</s>", 0.0], ["▁", -2.0], *([sign, -3.0] for sign in "</s>ab")]
    return {
        "version": "1.0",
        "added_tokens": [added_token(1, "</s>")],
        "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        "post_processor": None,
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        "model": {"type": "Unigram", "unk_id": 0, "vocab": pieces, "byte_fallback": False},
    }


def words():
    """A word vocabulary that spells its end of text like any other word."""
    vocabulary = {"[UNK]": 0, "[SEP]": 1, "cat": 2, "##s": 3}
    model = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##"}
    return {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": False},
        "model": model | {"max_input_chars_per_word": 9, "vocab": vocabulary},
    }


def merged_into_its_end():
    """Merges that lead to the symbol's own spelling, as a careless conversion leaves them."""
    pieces, merges, document = small_byte_level(end="<|the|>")
    size = len(pieces)
    pieces |= {"<|the": size, "|>": size + 1}
    merges = [*merges, ("<|", "the"), ("|", ">"), ("<|the", "|>")]
    return document | {"model": document["model"] | {"vocab": pieces, "merges": [list(merge) for merge in merges]}}


@pytest.mark.parametrize(
    "document, end",
    [
        (unigram(), "</s>"),
        (unigram() | {"added_tokens": []}, "</s>"),
        (words(), "[SEP]"),
        (merged_into_its_end(), "<|the|>"),
        (small_byte_level(split=LLAMA3)[2], END),
    ],
    ids=["unigram", "unigram, not added", "words", "merges", "whole words"],
)
def test_no_text_can_spell_a_special_symbol(document, end):
    tokenizer = HuggingFaceTokenizer.from_json(document, {"eos_token": end})
    for text in (end, f"a {end} b", f"{end}{end}", "\0 1 \0"):
        assert tokenizer.specials.end_of_text not in tokenizer.encode(text)
    assert tokenizer.decode([tokenizer.specials.end_of_text]) == ""
    assert tokenizer.token_bytes[tokenizer.specials.end_of_text] == 0


def test_an_added_token_that_is_not_special_is_text_in_one_id():
    pieces, _, document = small_byte_level()
    document["added_tokens"].append(added_token(len(pieces), "<thé>", special=False))
    tokenizer = HuggingFaceTokenizer.from_json(document, {"eos_token": END})
    assert tokenizer.vocab_size == len(pieces) + 1
    assert len(pieces) in tokenizer.encode("the<thé>cat")
    assert tokenizer.decode(tokenizer.encode("the<thé>cat")) == "the<thé>cat"
    assert tokenizer.token_bytes[len(pieces)] == len("<thé>".encode())


def test_no_symbol_is_added_nothing_cut_off_or_padded_and_no_merge_left_to_chance(small):
    document = beginning_with(small_byte_level()[2], END, small.specials.end_of_text)
    document["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    document["padding"] = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None}
    document["padding"] |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "!"}
    document["model"]["dropout"] = 0.9
    tokenizer = HuggingFaceTokenizer.from_json(document, {"eos_token": END, "bos_token": END})
    for text in ("", "a", "the cat sat"):
        assert tokenizer.encode(text).tolist() == small.encode(text).tolist()
    assert tokenizer.specials.beginning_of_text == small.specials.end_of_text
    assert small.specials.beginning_of_text is None


def test_sentencepiece_bytes_are_counted_with_the_space_before_a_text():
    document, names = sentencepiece_document(small_llama(), "here")
    tokenizer = HuggingFaceTokenizer.from_json(document, names)
    for text in ("the cat", " the  cat\n", "日\0"):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.token_bytes[ids].sum() == len(text.encode()) + 1
    assert tokenizer.decode(tokenizer.encode("日")[:-1]) == "\ufffd"
    assert not tokenizer.lossless


def test_other_vocabularies_decode_as_the_library_does():
    tokenizer = HuggingFaceTokenizer.from_json(words(), {"eos_token": "[SEP]"})
    ids = tokenizer.encode("Cats cat")
    assert ids.tolist() == [2, 3, 2]
    assert tokenizer.decode(ids) == "cats cat"


def test_llama3_takes_three_digits_at_once_qwen2_one():
    pieces, _, llama3 = small_byte_level(split=LLAMA3)
    assert HuggingFaceTokenizer.from_json(llama3, {"eos_token": END}).encode("1234")[0] == pieces["123"]
    qwen2 = HuggingFaceTokenizer.from_json(small_byte_level(split=QWEN2)[2], {"eos_token": END})
    assert qwen2.encode("123").tolist() == [pieces["1"], pieces["2"], pieces["3"]]
    assert qwen2.decode(qwen2.encode("e\u0301")) == "é"


def test_a_better_piece_is_merged_first_whichever_way_it_is_cut():
    scores = {"ab": -1.0, "abc": -0.5, "bc": -2.0}
    assert merges_by_score(scores, {"a", "b", "c", "ab", "bc"}) == [("a", "bc"), ("ab", "c"), ("a", "b"), ("b", "c")]


def test_nothing_gives_nothing(small):
    assert small.encode("").shape == (0,)
    assert small.encode_batch([]) == []


def test_a_lone_surrogate_is_a_clear_error(small):
    with pytest.raises(UserError, match="U\\+D800 at character 3"):
        small.encode("abc\ud800")


def test_a_saved_tokenizer_loads_as_the_same_with_its_symbols_and_chat_template(tmp_path):
    names = {"eos_token": END, "bos_token": "<s>"}
    tokenizer = HuggingFaceTokenizer.from_json(small_byte_level(first=["<s>"])[2], names, "{{ bos_token }}")
    tokenizer.save(tmp_path)
    for again in (load_tokenizer(tmp_path), pickle.loads(pickle.dumps(tokenizer))):
        assert again.fingerprint == tokenizer.fingerprint
        assert again.specials == tokenizer.specials
        assert (again.symbol_names, again.chat_template) == (names, "{{ bos_token }}")
        assert again.encode(TEXT).tolist() == tokenizer.encode(TEXT).tolist()


def garbled(**changes):
    document = small_byte_level()[2]
    return document | changes | {"model": document["model"] | changes.get("model", {})}


@pytest.mark.parametrize(
    "document, message",
    [
        ({}, "no tokenizer.json"),
        ({"model": {"vocab": 3}}, "no tokenizer.json"),
        ({"model": {"vocab": {"a": "b"}}}, "no tokenizer.json"),
        ({"model": {"vocab": {}}, "added_tokens": [{}]}, "no tokenizer.json"),
        (garbled(model={"merges": [["q", "z"]]}), "cannot be read by the `tokenizers` library"),
        (garbled(decoder={"type": "Magic"}), "cannot be read by the `tokenizers` library"),
        (garbled(decoder=3), "cannot be read by the `tokenizers` library"),
        (garbled(added_tokens=[added_token(900, END + ">")]), "id 900, .* ids before it are missing"),
    ],
)
def test_a_document_that_is_no_tokenizer_is_refused_by_name(document, message):
    with pytest.raises(UserError, match=f"x.json .*{message}|x.json {message}"):
        HuggingFaceTokenizer.from_json(document, {"eos_token": END}, where="x.json")


def test_a_symbol_that_the_vocabulary_lacks_is_named():
    with pytest.raises(UserError, match="x.json: the bos_token is '<s>', but"):
        HuggingFaceTokenizer.from_json(small_byte_level()[2], {"eos_token": END, "bos_token": "<s>"}, where="x.json")


def test_a_damaged_model_file_is_refused(small):
    model = small.model_file()[1]
    for damaged in (model[:-20], b"{}", b"[]", json.dumps({"tokenizer": {}, "symbol_names": {}}).encode()):
        with pytest.raises(UserError, match="damaged"):
            HuggingFaceTokenizer.from_model(damaged)


def test_a_folder_of_gpt2_files_gives_the_same_as_its_tokenizer_json(small, tmp_path):
    assert open_tokenizer(small_gpt2(tmp_path)).encode(TEXT).tolist() == small.encode(TEXT).tolist()
