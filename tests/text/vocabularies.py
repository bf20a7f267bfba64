"""Small vocabularies of every kind, made on the spot."""

import io
import json
from pathlib import Path

import sentencepiece

from gpt_jax.text.tokenizer_json import GPT2, added_token, byte_alphabet, byte_level

TEXT = "the cat and  the dog sat on a mat; which cat? the old one, and the older dog saw it in 1984 or 12345\n" * 30


def small_openai_gpt(folder: Path, names=("encoder_bpe_40000.json", "vocab_40000.bpe")) -> Path:
    """GPT-1's kind of vocabulary for ASCII, with a handful of merges, as its two files in `folder`."""
    signs = [chr(code) for code in range(33, 127) if not chr(code).isupper()] + ["é"]
    merges = [("t", "h"), ("th", "e</w>"), ("c", "a"), ("ca", "t</w>"), ("th", "a"), ("n", "'"), (".", "."), ("t", "t")]
    pieces = ["<unk>", *signs, *(f"{sign}</w>" for sign in signs), *("".join(merge) for merge in merges), "\n</w>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(json.dumps({piece: id for id, piece in enumerate(pieces)}))
    (folder / names[1]).write_text("#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in merges))
    return folder


def small_byte_level(end="<|endoftext|>", split=GPT2, first=()):
    """(pieces, merges, tokenizer.json) of byte-level BPE: `first`, 256 bytes, some merges, the end of text."""
    signs = [*first, *byte_alphabet()]
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("c", "a"), ("ca", "t"), ("1", "2"), ("12", "3"), ("<", "|")]
    pieces = {piece: id for id, piece in enumerate([*signs, *("".join(merge) for merge in merges), end])}
    added = [added_token(pieces[content], content) for content in (*first, end)]
    return pieces, merges, byte_level(pieces, merges, added, split)


def small_gpt2(folder: Path, names=("encoder.json", "vocab.bpe")) -> Path:
    """GPT-2's two files in `folder`."""
    pieces, merges, _ = small_byte_level()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(json.dumps(pieces))
    (folder / names[1]).write_text("#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in merges))
    return folder


def small_llama(**settings) -> bytes:
    """A SentencePiece model as Llama 1 and 2 have: BPE, byte fallback, a space before every text."""
    model = io.BytesIO()
    settings = {
        "vocab_size": 330,
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "minloglevel": 2,
        **settings,
    }
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(TEXT.splitlines()), model_writer=model, **settings)
    return model.getvalue()
