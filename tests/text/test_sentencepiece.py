"""The SentencePiece tokenizer loses nothing, cannot be tricked, and is the same wherever it is trained."""

import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpt_jax.errors import UserError
from gpt_jax.text.sampling import sample_blocks
from gpt_jax.text.sentencepiece import load_or_train, train
from gpt_jax.text.tokenizer import SpecialIds, load_tokenizer

WORDS = "the cat and  the dog sat on a mat; which cat? the old one, and the older dog saw it".split(" ")
TEXT = "\n".join(" ".join(WORDS[i % 7 :] + WORDS[: i % 11]) + ("\n" if i % 5 == 0 else "") for i in range(300))
VOCAB = 290


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def tokenizer(request):
    return train([TEXT], vocab_size=VOCAB, model_type=request.param)


any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
# Mostly what the vocabulary knows, and what it could trip over.
likely_text = st.lists(
    st.sampled_from(
        [
            *WORDS,
            " ",
            "  ",
            "\n",
            "\n\n",
            "\n\n\n",
            "\r\n",
            "\t",
            "\0",
            "\u2581",
            "\u2585",
            "\u2047",
            "<unk>",
            "<|pad|>",
            "<0x41>",
            "\u00a0",
            "\ufeff",
            "é",
            "e\u0301",
            "日本",
            "👩‍🚀",
            "\U0010ffff",
            "\u0378",
        ]
    ),
    max_size=30,
).map("".join)


@given(text=any_text | likely_text)
@example("a\u2581b\u2581\u2581 c")
@example("\n \n  \n\n\n")
@settings(max_examples=300, deadline=None)
def test_any_text_comes_back_exactly_and_its_bytes_are_counted(tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32 and ids.ndim == 1
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes[ids].sum() == len(text.encode())


@given(lines=st.lists(likely_text.map(lambda text: text.replace("\n", "") + "x\n"), max_size=6))
@settings(max_examples=100, deadline=None)
def test_text_encoded_line_by_line_gives_the_ids_of_the_whole(tokenizer, lines):
    parts = tokenizer.encode_batch(lines)
    assert np.array_equal(np.concatenate([*parts, []]), tokenizer.encode("".join(lines)))


def test_no_piece_crosses_a_line_and_no_piece_holds_a_space_after_a_letter(tokenizer):
    pieces = [tokenizer.decode([id]) for id in range(tokenizer.vocab_size)]
    assert {piece for piece in pieces if "\n" in piece} == {"\n", "\n\n"}
    assert not [piece for piece in pieces if " " in piece.lstrip(" ")]


def test_special_symbols_have_their_fixed_ids_and_spell_nothing(tokenizer):
    assert tokenizer.specials == SpecialIds(pad=0, end_of_text=1, start=3, delimiter=4, extract=5)
    assert tokenizer.decode(range(6)) == ""
    assert not tokenizer.token_bytes[:6].any() and tokenizer.token_bytes[6:].all()


def test_no_text_can_spell_a_special_symbol(tokenizer):
    names = [tokenizer._processor.id_to_piece(id) for id in range(6)]
    for text in [*names, "".join(names), "<s>", "</s>", "\n".join(names)]:
        assert tokenizer.encode(text).min() > 5


def test_encoding_nothing_gives_nothing(tokenizer):
    assert tokenizer.encode("").shape == (0,)
    assert tokenizer.encode_batch([]) == []
    assert [len(ids) for ids in tokenizer.encode_batch(["", "a", ""])] == [0, 1, 0]


def test_a_lone_surrogate_is_a_clear_error(tokenizer):
    with pytest.raises(UserError, match="U\\+D800 at character 3"):
        tokenizer.encode("abc\ud800")
    with pytest.raises(UserError, match="surrogate"):
        train(["abc\udfff"], vocab_size=VOCAB)


def test_ids_that_end_in_the_middle_of_a_character_decode_to_a_replacement(tokenizer):
    assert tokenizer.decode(tokenizer.encode("日")[:-1]) == "\ufffd"


def test_a_saved_tokenizer_loads_as_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "there")
    for again in (load_tokenizer(tmp_path / "there"), pickle.loads(pickle.dumps(tokenizer))):
        assert again.fingerprint == tokenizer.fingerprint
        assert np.array_equal(again.encode(TEXT), tokenizer.encode(TEXT))


def test_a_missing_or_damaged_tokenizer_folder_is_named(tokenizer, tmp_path):
    with pytest.raises(UserError, match="No tokenizer in"):
        load_tokenizer(tmp_path)
    tokenizer.save(tmp_path)
    model = tmp_path / "sentencepiece.model"
    model.write_bytes(model.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match="sentencepiece.model is damaged"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="tokenizer.json is damaged"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"kind": "words", "format": 1, "file": "sentencepiece.model"}')
    with pytest.raises(UserError, match="kind 'words'"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_training_gives_the_same_on_one_core_as_on_all(model_type):
    program = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from gpt_jax.text.sentencepiece import train; from test_sentencepiece import TEXT, VOCAB\n"
        f"print(train([TEXT], vocab_size=VOCAB, model_type={model_type!r}).fingerprint)"
    )
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("no way to bind a process to one core here")
    path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    there = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": path},
        text=True,
        stdout=subprocess.PIPE,
        check=True,
    )
    assert there.stdout.strip() == train([TEXT], vocab_size=VOCAB, model_type=model_type).fingerprint


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_a_vocabulary_larger_than_the_text_supports_names_the_largest_that_works(model_type):
    with pytest.raises(UserError, match="tokenizer.vocab_size=5000 is larger") as error:
        train([TEXT], vocab_size=5000, model_type=model_type)
    largest = int(str(error.value).split("works here is ")[1].split(";")[0])
    assert train([TEXT], vocab_size=largest, model_type=model_type).vocab_size == largest


def test_a_vocabulary_too_small_for_the_bytes_says_what_is_needed():
    with pytest.raises(UserError, match="tokenizer.vocab_size=100 is too small"):
        train([TEXT], vocab_size=100)


def test_training_on_nothing_or_in_an_unknown_way_is_a_clear_error():
    for texts in ([], ["", "\n\n"]):
        with pytest.raises(UserError, match="no text to train"):
            train(texts, vocab_size=VOCAB)
    with pytest.raises(UserError, match="model_type"):
        train([TEXT], vocab_size=VOCAB, model_type="words")


def test_lines_with_the_trainers_own_characters_are_learnt_from_too():
    text = "\n".join(f"zebra\tquokka{sign}wombat" for sign in "\0\u2585\u2581" for _ in range(200))
    tokenizer = train([text], vocab_size=290)
    assert [len(tokenizer.encode(word)) for word in ("zebra", "quokka", "wombat")] == [1, 1, 1]


def test_training_prints_nothing(capfd):
    train([TEXT], vocab_size=VOCAB)
    assert capfd.readouterr() == ("", "")


def test_the_sample_is_bounded_reproducible_and_in_order():
    texts = ["".join(f"{part} {line}\n" for line in range(20_000)) for part in range(4)]
    sample = sample_blocks(iter(texts), 200_000, seed=0)
    assert 100_000 < sum(map(len, sample)) <= 200_000
    assert sample == sample_blocks(iter(texts), 200_000, seed=0) != sample_blocks(iter(texts), 200_000, seed=1)
    whole = "".join(texts)
    places = [whole.index(block) for block in sample]
    assert places == sorted(places) and len({place * 4 // len(whole) for place in places}) == 4
    assert "".join(sample_blocks(iter(texts), 10**9, seed=0)) == whole


def cached(tmp_path, texts=lambda: [TEXT], **settings):
    settings = {"vocab_size": VOCAB, "content_fingerprint": "c", "cache_dir": tmp_path, "progress": False, **settings}
    return load_or_train(texts, **settings)


def not_to_be_read():
    raise AssertionError("the texts were read although the tokenizer is cached")


def test_a_cached_tokenizer_is_used_without_reading_the_text(tmp_path):
    first = cached(tmp_path)
    assert cached(tmp_path, not_to_be_read).fingerprint == first.fingerprint
    for other in ({"vocab_size": VOCAB + 1}, {"content_fingerprint": "d"}, {"seed": 1}):
        with pytest.raises(AssertionError):
            cached(tmp_path, not_to_be_read, **other)


def test_a_damaged_cached_tokenizer_is_named_and_built_anew(tmp_path, capsys):
    first = cached(tmp_path)
    for damaged in ("sentencepiece.model", "tokenizer.json"):
        [file] = tmp_path.rglob(damaged)
        file.write_bytes(file.read_bytes()[:-5])
        assert cached(tmp_path).fingerprint == first.fingerprint
        assert str(file) in capsys.readouterr().err
        assert cached(tmp_path, not_to_be_read).fingerprint == first.fingerprint


def test_of_two_that_ask_at_once_one_trains(tmp_path):
    readings = []
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: cached(tmp_path, lambda: readings.append(1) or [TEXT]), range(2))
    assert first.fingerprint == second.fingerprint and len(readings) == 1
