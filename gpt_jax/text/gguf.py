"""The tokenizer inside a GGUF file, as a tokenizer.json.

A GGUF file carries the vocabulary as metadata: `tokenizer.ggml.tokens`, their types, merges or scores, the ids of
special symbols, and the name of the pattern that cuts text into words, which it does not spell out (llama.cpp knows
the patterns by name; so does `SPLITS`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt_jax.errors import UserError, did_you_mean
from gpt_jax.extras import require
from gpt_jax.text.huggingface import HuggingFaceTokenizer
from gpt_jax.text.tokenizer_json import (
    GPT2,
    LLAMA3,
    QWEN2,
    SMOLLM,
    added_token,
    beginning_with,
    byte_level,
    merges_by_score,
    sentencepiece_bpe,
)

# `tokenizer.ggml.pre` -> how text is cut. "default" stands for files of before the field was invented: GPT-2's way.
SPLITS = {
    "default": GPT2,
    "gpt-2": GPT2,
    "smollm": SMOLLM,
    "llama-bpe": LLAMA3,
    "llama3": LLAMA3,
    "llama-v3": LLAMA3,
    "qwen2": QWEN2,
    "deepseek-r1-qwen": QWEN2,
}
# Patterns whose texts begin with the symbol although `tokenizer.ggml.add_bos_token` is absent (llama.cpp,
# llama-vocab.cpp), as do those of all SentencePiece vocabularies, which are older than that field.
_BEGIN_BY_DEFAULT = ("llama-bpe", "llama3", "llama-v3")
# `tokenizer.ggml.token_type` (gguf.constants.TokenType)
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)

PREFIX = "tokenizer."


def tokenizer_from_metadata(metadata: Mapping[str, Any], where: str = "The GGUF file") -> HuggingFaceTokenizer:
    """The tokenizer that a GGUF file's metadata describe.

    Args:
      metadata: name -> plain Python value, e.g. {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": [...], ...};
        other names are ignored.
      where: what to call the file in messages.

    Raises:
      UserError: a field is missing or does not fit the others, a kind of vocabulary or pattern that is not known.
    """
    field = _Fields(metadata, where)
    tokens, types = field.tokens(), field.types()
    build = {"gpt2": _byte_level, "llama": _sentencepiece}.get(field.need("ggml.model"))
    if build is None:
        raise UserError(
            f"{where} has a tokenizer of kind {field.get('ggml.model')!r}; known are 'gpt2' (byte-level BPE) and "
            "'llama' (SentencePiece BPE). Open the model's Hugging Face folder instead."
        )
    document = build(field, tokens, types)
    names = {"eos_token": "eos", "bos_token": "bos", "pad_token": "padding"}
    ids = {name: field.id(f"ggml.{key}_token_id", len(tokens)) for name, key in names.items()}
    if ids["eos_token"] is None:
        raise UserError(f"{where} does not say which token ends a text (tokenizer.ggml.eos_token_id).")
    symbol_names = {name: tokens[id] for name, id in ids.items() if id is not None}
    by_default = build is _sentencepiece or field.get("ggml.pre") in _BEGIN_BY_DEFAULT
    if field.get("ggml.add_bos_token", by_default) and ids["bos_token"] is not None:
        document = beginning_with(document, symbol_names["bos_token"], ids["bos_token"])
    return HuggingFaceTokenizer.from_json(document, symbol_names, field.get("chat_template"), where)


def read_tokenizer(path: Path) -> HuggingFaceTokenizer:
    """The tokenizer of the GGUF file `path`. UserError: see `tokenizer_from_metadata`; not a GGUF file, or damaged."""
    gguf = require("gguf", "gguf")
    try:
        fields = gguf.GGUFReader(path).fields
        metadata = {name: fields[name].contents() for name in fields if name.startswith(PREFIX)}
    except (ValueError, KeyError, IndexError, OSError, TypeError) as error:  # what it happens to stumble over
        raise UserError(f"{path} cannot be read as a GGUF file ({error}). Is it cut short? Fetch it again.") from None
    return tokenizer_from_metadata(metadata, str(path))


class _Fields:
    """The metadata under `tokenizer.`, asked for by name."""

    def __init__(self, metadata: Mapping[str, Any], where: str):
        self._metadata = metadata
        self.where = where

    def get(self, name: str, default: Any = None) -> Any:
        return self._metadata.get(PREFIX + name, default)

    def need(self, name: str) -> Any:
        if (value := self.get(name)) is None:
            raise UserError(f"{self.where} has no {PREFIX}{name}, which its tokenizer needs. Fetch the file again.")
        return value

    def tokens(self) -> list[str]:
        tokens = self.need("ggml.tokens")
        if len(set(tokens)) != len(tokens):
            raise UserError(f"{self.where}: tokenizer.ggml.tokens holds a token twice. The file is damaged.")
        return tokens

    def types(self) -> list[int]:
        return self.list("ggml.token_type") if self.get("ggml.token_type") else [_NORMAL] * len(self.tokens())

    def list(self, name: str) -> list:
        values = self.need(name)
        if len(values) != len(self.need("ggml.tokens")):
            raise UserError(
                f"{self.where}: {PREFIX}{name} has {len(values):,} values for {len(self.need('ggml.tokens')):,} "
                "tokens. The file is damaged: fetch it again."
            )
        return values

    def id(self, name: str, vocab_size: int) -> int | None:
        id = self.get(name)
        if id is not None and not 0 <= id < vocab_size:
            raise UserError(f"{self.where}: {PREFIX}{name} is {id}, but the vocabulary ends at {vocab_size - 1}.")
        return id


def _byte_level(field: _Fields, tokens: list[str], types: list[int]) -> dict[str, Any]:
    name = field.get("ggml.pre", "default")
    if name not in SPLITS:
        raise UserError(
            f"{field.where} cuts text by the pattern {name!r} (tokenizer.ggml.pre), which is not known here; known are "
            f"{', '.join(SPLITS)}.{did_you_mean(name, SPLITS)} Open the model's Hugging Face folder instead."
        )
    merges = [merge.split(" ") for merge in field.need("ggml.merges")]
    pieces = {token: id for id, token in enumerate(tokens)}
    for number, merge in enumerate(merges, start=1):
        if len(merge) != 2 or not {*merge, "".join(merge)} <= pieces.keys():
            raise UserError(
                f"{field.where}: merge {number} of tokenizer.ggml.merges is {' '.join(merge)!r}, not two tokens that "
                "make a third. The file is damaged: fetch it again."
            )
    return byte_level(pieces, merges, _added(tokens, types), SPLITS[name])


def _sentencepiece(field: _Fields, tokens: list[str], types: list[int]) -> dict[str, Any]:
    scores = field.list("ggml.scores")
    known = list(zip(tokens, types, scores, strict=True))
    normal = {token: score for token, type, score in known if type == _NORMAL}
    unknown = field.id("ggml.unknown_token_id", len(tokens))
    if unknown is None:
        unknown = types.index(_UNKNOWN) if _UNKNOWN in types else 0
    return sentencepiece_bpe(
        {token: id for id, token in enumerate(tokens)},
        merges_by_score(normal, normal.keys()),
        _added(tokens, types),
        unknown=tokens[unknown],
        leading_space=field.get("ggml.add_space_prefix", True),
    )


def _added(tokens: list[str], types: list[int]) -> list[dict[str, Any]]:
    return [
        added_token(id, token, special=type != _USER_DEFINED)
        for id, (token, type) in enumerate(zip(tokens, types, strict=True))
        if type in (_CONTROL, _UNKNOWN, _USER_DEFINED)
    ]
