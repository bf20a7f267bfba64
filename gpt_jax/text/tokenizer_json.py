"""The `tokenizer.json` of Hugging Face's `tokenizers` library, built from vocabularies that come in other forms.

Everything here is a plain dict of JSON values; `gpt_jax.text.huggingface` gives it to the library.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SPACE_SIGN = "\u2581"

# GPT-2's pattern (src/encoder.py:53) is what the library's ByteLevel splits by when it is told to use one.
GPT2_SPLIT = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_BYTES_ONLY = GPT2_SPLIT | {"use_regex": False}
_DIGITS = {"type": "Digits", "individual_digits": True}
# Llama 3 (llama3/tokenizer.py, `pat_str`) and Qwen 2 (tokenization_qwen.py) differ in how many digits go together.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class Split:
    """How a byte-level vocabulary wants text cut before its merges apply.

    whole_words: a piece of text that is in the vocabulary is taken as it is, before any merge.
    composed: the text is brought to Unicode's form NFC first (which is not lossless).
    """

    pre_tokenizer: Mapping[str, Any]
    whole_words: bool = False
    composed: bool = False


def _pattern(digits: str) -> dict[str, Any]:
    regex = "|".join([_CONTRACTIONS, _WORDS, digits, _REST])
    split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, _BYTES_ONLY]}


GPT2 = Split(GPT2_SPLIT)
SMOLLM = Split({"type": "Sequence", "pretokenizers": [_DIGITS, GPT2_SPLIT]})
LLAMA3 = Split(_pattern(r"\p{N}{1,3}"), whole_words=True)
QWEN2 = Split(_pattern(r"\p{N}"), composed=True)


def byte_alphabet() -> dict[str, int]:
    """The 256 characters that stand for bytes in a byte-level vocabulary, as GPT-2 chose them.

    The bytes that are printable characters of Latin-1 stand for themselves; the others, in order, are U+0100 and on.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


def byte_level(
    vocabulary: Mapping[str, int], merges: Iterable[Sequence[str]], added: list[dict[str, Any]], split: Split
) -> dict[str, Any]:
    """Byte-level BPE; `vocabulary` is spelled in `byte_alphabet`, `added` are symbols made by `added_token`."""
    model = _bpe(vocabulary, merges) | {"ignore_merges": split.whole_words}
    return _document(
        model,
        added,
        normalizer={"type": "NFC"} if split.composed else None,
        pre_tokenizer=dict(split.pre_tokenizer),
        decoder=GPT2_SPLIT,
    )


def sentencepiece_bpe(
    vocabulary: Mapping[str, int],
    merges: Iterable[Sequence[str]],
    added: list[dict[str, Any]],
    *,
    unknown: str,
    leading_space: bool,
    pre_tokenizer: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """SentencePiece's BPE with byte fallback; spaces are U+2581 in `vocabulary`, bytes "<0x00>" to "<0xFF>".

    `leading_space`: a space is put before every text, as in Llama 1 and 2, and taken away again when decoding.
    """
    normalizers = [{"type": "Replace", "pattern": {"String": " "}, "content": SPACE_SIGN}]
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE_SIGN}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if leading_space:
        normalizers.insert(0, {"type": "Prepend", "prepend": SPACE_SIGN})
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return _document(
        _bpe(vocabulary, merges) | {"unk_token": unknown, "fuse_unk": True, "byte_fallback": True},
        added,
        normalizer={"type": "Sequence", "normalizers": normalizers},
        pre_tokenizer=pre_tokenizer,
        decoder={"type": "Sequence", "decoders": decoders},
    )


def merges_by_score(scores: Mapping[str, float], vocabulary: Collection[str]) -> list[tuple[str, str]]:
    """The merges that a SentencePiece BPE stands for: it joins the neighbours whose joint piece has the best score.

    scores: {piece: score} of the pieces that merges may make; vocabulary: the pieces they may be made of.
    Each way to cut a piece in two is a merge, the better pieces' first.
    """
    merges = []
    for piece in sorted(scores, key=scores.__getitem__, reverse=True):
        cuts = ((piece[:place], piece[place:]) for place in range(1, len(piece)))
        merges.extend((left, right) for left, right in cuts if left in vocabulary and right in vocabulary)
    return merges


def added_token(id: int, content: str, special: bool = True) -> dict[str, Any]:
    """A symbol that is looked for in the text as it is, before anything else; a special one is left out of texts."""
    return {
        "id": id,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": special,
    }


def beginning_with(tokenizer: dict[str, Any], content: str, id: int) -> dict[str, Any]:
    """`tokenizer`, which puts the symbol `content` before every text where special symbols are asked for."""
    symbol = {"SpecialToken": {"id": content, "type_id": 0}}
    text, pair = ({"Sequence": {"id": name, "type_id": place}} for place, name in enumerate("AB"))
    template = {
        "type": "TemplateProcessing",
        "single": [symbol, text],
        "pair": [symbol, text, {"SpecialToken": {"id": content, "type_id": 1}}, pair],
        "special_tokens": {content: {"id": content, "ids": [id], "tokens": [content]}},
    }
    return tokenizer | {"post_processor": template}


def _bpe(vocabulary: Mapping[str, int], merges: Iterable[Sequence[str]]) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": dict(sorted(vocabulary.items(), key=lambda item: item[1])),
        "merges": [list(merge) for merge in merges],
    }


def _document(model: dict[str, Any], added: list[dict[str, Any]], **parts: Any) -> dict[str, Any]:
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "post_processor": None,
        **parts,
        "model": model,
    }
