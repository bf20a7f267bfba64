"""Text to windows with the real tokenizer and store: what the rooms promise each other holds together."""

import numpy as np
import pytest

from gpt_jax.data import pieces, token_store
from gpt_jax.data.sources import open_source
from gpt_jax.data.token_store import open_or_build
from gpt_jax.text.sentencepiece import load_or_train

TEXT = "".join(f"{'  ' * (line % 3)}line {line} says: the café is open" + "\n" * (1 + line % 4) for line in range(900))


@pytest.fixture(params=["bpe", "unigram"])
def prepared(request, tmp_path):
    (tmp_path / "a.txt").write_text(TEXT)
    source = open_source(f"file:{tmp_path}/a.txt", cache_dir=tmp_path, validation_fraction=0.1)
    tokenizer = load_or_train(
        lambda: (piece.text for piece in source.pieces("train")),
        content_fingerprint=source.fingerprint("train"),
        cache_dir=tmp_path,
        progress=False,
        vocab_size=300,
        model_type=request.param,
    )
    return source, tokenizer, tmp_path


def test_a_document_tokenised_in_pieces_gives_the_ids_of_the_whole(prepared, monkeypatch):
    source, tokenizer, folder = prepared
    monkeypatch.setattr(pieces, "PIECE_CHARACTERS", 100)  # some longer than a line, some cut at a space
    monkeypatch.setattr(token_store, "BATCH_CHARACTERS", 1000)
    monkeypatch.setattr(token_store, "SHARD_TOKENS", 2048)
    monkeypatch.setattr(token_store, "CHUNK_TOKENS", 256)
    assert len(list(source.pieces("train"))) > 100
    texts = []
    for split in ("train", "valid"):
        store = open_or_build(source, split, tokenizer, cache_dir=folder, progress=False)
        ids = store.read(0, len(store))
        texts.append(tokenizer.decode(ids))
        assert np.array_equal(ids, [*tokenizer.encode(texts[-1]), tokenizer.specials.end_of_text])
        assert tokenizer.token_bytes[ids].sum() == store.manifest["bytes"] == len(texts[-1].encode())
    assert "".join(texts) == TEXT


def test_wherever_the_cuts_fall_the_ids_are_those_of_the_whole(prepared, monkeypatch):
    _, tokenizer, _ = prepared
    whole = tokenizer.encode(TEXT)
    for size in range(50, 100):  # so that the limit falls on every place in a line and in a run of newlines
        monkeypatch.setattr(pieces, "PIECE_CHARACTERS", size)
        parts = [piece.text for piece in pieces.cut_document([TEXT])]
        assert np.array_equal(np.concatenate(tokenizer.encode_batch(parts)), whole)


def test_long_lines_cut_at_spaces_give_the_ids_of_the_whole(prepared, monkeypatch):
    _, tokenizer, _ = prepared
    text = TEXT.replace("\n", " ")
    monkeypatch.setattr(pieces, "PIECE_CHARACTERS", 100)
    parts = [piece.text for piece in pieces.cut_document([text])]
    assert len(parts) > 100
    assert np.array_equal(np.concatenate(tokenizer.encode_batch(parts)), tokenizer.encode(text))
