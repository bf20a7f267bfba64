"""Any `tokenizer.json` of Hugging Face's `tokenizers` library: GPT-2, Llama, Qwen and most others.

What differs from the library's own habits, because our contract says so: no text can spell a special symbol, `encode`
adds none, and nothing is cut off or padded.
"""

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpt_jax.errors import UserError
from gpt_jax.extras import require
from gpt_jax.text.tokenizer import (
    FINE_TUNING_SYMBOLS,
    SpecialIds,
    before_last_word,
    check_unicode,
    concatenated_parts,
    save_model,
)
from gpt_jax.text.tokenizer_json import added_token, byte_alphabet


class HuggingFaceTokenizer:
    """A `gpt_jax.text.tokenizer.Tokenizer` around one tokenizer.json and the names of its special symbols.

    Lossless if it is byte-level BPE without a normalizer, as GPT-2's and Llama 3's. Otherwise text comes back as the
    vocabulary's own decoder makes it, and `token_bytes` counts what it spells (with Llama 2's the space before a
    text, which `decode` drops).

    `document`: the tokenizer.json, a dict. Symbols marked special in it are never spelled by a text; other added
    tokens (Qwen's "<tool_call>") are ordinary text that takes one id.
    """

    kind = "huggingface"

    def __init__(self, model: bytes, where: str = "The tokenizer's model file"):
        """`model`: see `model_file`. UserError: `where` is no tokenizer, or has not the symbols that are named."""
        content = _parsed(model)
        self.document: dict[str, Any] = content["tokenizer"]
        self.symbol_names: Mapping[str, str] = content["symbol_names"]
        self.chat_template: str | None = content.get("chat_template")
        self.fingerprint = hashlib.sha256(self.kind.encode() + model).hexdigest()
        self._model = model
        ids = vocabulary_of(self.document, where)
        named = {name: _id_of(name, content, ids, where) for name, content in self.symbol_names.items()}
        special = {token["content"] for token in self.document["added_tokens"] if token["special"]}
        hidden = special | set(self.symbol_names.values())
        self.symbols: dict[str, int] = {content: ids[content] for content in hidden}
        self._engine = _engine(_unspellable(self.document, self.symbols), where)
        self.vocab_size = max(ids.values()) + 1
        self.specials = SpecialIds(
            pad=named.get("pad_token", named["eos_token"]),
            end_of_text=named["eos_token"],
            beginning_of_text=self._beginning(named.get("bos_token")),
            **{name: named.get(f"{name}_token") for name in FINE_TUNING_SYMBOLS},
        )
        decoders = list(_parts(self.document.get("decoder")))
        self._strips_space = any(part["type"] == "Strip" and part.get("start") for part in decoders)
        spelling = _spelling(decoders)
        self._spelling_of_id = spelling and self._spellings(spelling, set(self.symbols.values()))
        spellings = self._spelling_of_id or [self._decode([id]).encode() for id in range(self.vocab_size)]
        self.token_bytes = np.array([len(spelling) for spelling in spellings], np.int32)
        self.lossless = _keeps_everything(self.document, decoders, spellings)

    @classmethod
    def from_json(
        cls,
        document: Mapping[str, Any],
        symbol_names: Mapping[str, str],
        chat_template: str | None = None,
        where: str = "This tokenizer",
    ) -> "HuggingFaceTokenizer":
        """From a parsed tokenizer.json.

        symbol_names: {"eos_token": "</s>", ...}; also "bos_token", "pad_token", and "start_token", "delimiter_token",
            "extract_token" for fine-tuning, if there are such.
        where: what to call it in messages.
        UserError: no "eos_token", or a symbol that the vocabulary does not have.
        """
        content = {"tokenizer": document, "symbol_names": dict(symbol_names), "chat_template": chat_template}
        return cls(json.dumps(content, ensure_ascii=False).encode(), where)

    @classmethod
    def from_model(cls, model: bytes) -> "HuggingFaceTokenizer":
        """What `load_tokenizer` calls with the model file's content."""
        return cls(model)

    def __reduce__(self):
        return type(self), (self._model,)

    def encode(self, text: str) -> np.ndarray:
        """Ids of `text`, int32 [n], without special symbols. UserError: `text` holds a lone surrogate."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of each text, on all cores."""
        for text in texts:
            check_unicode(text)
        encodings = self._engine.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def encode_parts(self, parts: Sequence[str | int]) -> np.ndarray:
        """Ids of texts with special symbols, given by id, between them, int32 [n].

        They are those of the vocabulary's makers: a symbol that strips the spaces beside it does so, and a space that
        goes before a text goes where they put it. UserError: a text holds a lone surrogate.
        """
        texts = [part for part in parts if isinstance(part, str)]
        for text in texts:
            check_unicode(text)
        if any("\0" in text for text in texts):  # which could spell the symbols' new names
            return concatenated_parts(self, parts)
        text = "".join(part if isinstance(part, str) else _unspelled(part) for part in parts)
        return np.array(self._engine_of_parts.encode(text, add_special_tokens=False).ids, np.int32)

    def last_cut(self, text: str) -> int:
        """Before the last word: a piece takes at most the space before it along. See the protocol."""
        return before_last_word(text)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text that `ids` spell; special symbols spell nothing, broken UTF-8 becomes U+FFFD."""
        if self._spelling_of_id is None:
            return self._decode([int(id) for id in ids])
        text = b"".join([self._spelling_of_id[id] for id in ids]).decode(errors="replace")
        return text.removeprefix(" ") if self._strips_space else text

    def model_file(self) -> tuple[str, bytes]:
        """JSON: {"tokenizer": the tokenizer.json, "symbol_names": {...}, "chat_template": text or null}."""
        return "huggingface.json", self._model

    def save(self, directory: Path) -> None:
        """Writes what `load_tokenizer` needs into `directory`."""
        save_model(directory, self)

    @functools.cached_property
    def _engine_of_parts(self):
        """The same engine, but it finds the symbols' new names in a text."""
        return type(self._engine).from_str(self._engine.to_str())

    def _decode(self, ids: list[int]) -> str:
        return self._engine.decode(ids, skip_special_tokens=True)

    def _beginning(self, id: int | None) -> int | None:
        """`id`, if the tokenizer.json itself would put it before a text."""
        return id if id is not None and self._engine.encode("a", add_special_tokens=True).ids[:1] == [id] else None

    def _spellings(self, spelling: "_Spelling", special: set[int]) -> list[bytes]:
        spellings = [b""] * self.vocab_size
        added = {token["content"] for token in self.document["added_tokens"]}
        for content, id in vocabulary_of(self.document).items():
            if id not in special:
                spellings[id] = content.encode() if content in added else spelling(content)
        return spellings


def _parsed(model: bytes) -> dict[str, Any]:
    try:
        content = json.loads(model)
        if not content["symbol_names"]["eos_token"]:
            raise UserError("A tokenizer of kind 'huggingface' needs the name of its end of text ('eos_token').")
        return {**content, "tokenizer": {"added_tokens": [], **content["tokenizer"]}}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"The model file of a huggingface tokenizer is damaged ({error!r}). Rebuild it.") from None


def vocabulary_of(document: Mapping[str, Any], where: str = "The model file") -> dict[str, int]:
    """{piece: id} of the model in a parsed tokenizer.json and of its added tokens. UserError: it has none, `where`."""
    try:
        vocabulary = document["model"]["vocab"]
        if isinstance(vocabulary, list):  # a unigram model's: [[piece, score], ...]
            vocabulary = {piece: id for id, (piece, _) in enumerate(vocabulary)}
        added = {token["content"]: token["id"] for token in document.get("added_tokens", [])}
        vocabulary = vocabulary | added
        marked = all(isinstance(token["special"], bool) for token in document.get("added_tokens", []))
        if marked and {type(id) for id in vocabulary.values()} == {int}:
            return vocabulary
        reason = "its ids are no numbers, or an added token is neither special nor not"
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = repr(error)
    raise UserError(
        f"{where} is no tokenizer.json of the `tokenizers` library ({reason}): expected an object with a 'model' "
        "that has a 'vocab' of pieces and ids. Fetch the file again."
    )


def _id_of(name: str, content: str, ids: Mapping[str, int], where: str) -> int:
    if content not in ids:
        raise UserError(
            f"{where}: the {name} is {content!r}, but the vocabulary of {len(ids):,} has no such symbol. Correct "
            "tokenizer_config.json, or fetch both files from the same place."
        )
    return ids[content]


def _unspellable(document: dict[str, Any], hidden: Mapping[str, int]) -> dict[str, Any]:
    """`document` with other names, which no text holds, for the symbols `hidden` = {content: id}; ids stay.

    Telling the library not to look for special symbols in a text is not enough: a vocabulary that holds "</s>" as a
    piece finds it there (always if it is a unigram model, or by way of merges).
    """
    new_name = {content: _unspelled(id) for content, id in hidden.items()}
    tokens = [
        {**token, "content": new_name[token["content"]], "special": True} if token["content"] in hidden else token
        for token in document["added_tokens"]
    ]
    # Those that are pieces of the model only are made special symbols, so that decoding leaves them out.
    known = {token["id"] for token in tokens}
    tokens += [added_token(id, new_name[content]) for content, id in hidden.items() if id not in known]
    model = dict(document["model"])
    if isinstance(model["vocab"], list):
        model["vocab"] = [[new_name.get(piece, piece), score] for piece, score in model["vocab"]]
    else:
        model["vocab"] = {new_name.get(piece, piece): id for piece, id in model["vocab"].items()}
    if model.get("unk_token") in new_name:
        model["unk_token"] = new_name[model["unk_token"]]
    if "merges" in model:
        merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        model["merges"] = [merge for merge in merges if not {*merge, "".join(merge)} & hidden.keys()]
    if model.get("dropout"):
        model["dropout"] = None  # it would choose merges at random
    tokens.sort(key=lambda token: token["id"])
    return {**document, "truncation": None, "padding": None, "added_tokens": tokens, "model": model}


def _unspelled(id: int) -> str:
    """What a special symbol is called, so that no text spells it."""
    return f"\0 {id} \0"


def _engine(document: dict[str, Any], where: str):
    tokenizers = require("tokenizers", "huggingface")
    try:
        engine = tokenizers.Tokenizer.from_str(json.dumps(document, ensure_ascii=False))
    except Exception as error:  # the library knows no class of its own
        raise UserError(
            f"{where} cannot be read by the `tokenizers` library {tokenizers.__version__}: {error}. Is the file "
            "damaged, or made for a newer version?"
        ) from None
    for token in document["added_tokens"]:
        # Those that the model lacks, the library numbers on from the model's size, whatever the file says.
        if engine.token_to_id(token["content"]) != token["id"]:
            raise UserError(
                f"{where} gives an added token the id {token['id']}, but the `tokenizers` library would number it "
                f"{engine.token_to_id(token['content'])}: ids before it are missing. Fetch the file again."
            )
    engine.encode_special_tokens = True  # that is: as the ordinary text that they are
    return engine


def _parts(component: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """`component` (a decoder, a pre-tokenizer), or, if it is a sequence of some, each of them."""
    if component is None:
        return
    if component["type"] != "Sequence":
        yield component
        return
    for part in component.get("decoders") or component.get("pretokenizers") or component.get("normalizers") or []:
        yield from _parts(part)


class _Spelling:
    """The bytes that one piece of the vocabulary spells, whatever stands around it."""

    def __init__(self, alphabet: Mapping[str, int] | None, replacements: Sequence[tuple[str, str]]):
        self._alphabet = alphabet
        self._replacements = replacements

    def __call__(self, piece: str) -> bytes:
        if self._alphabet is not None:
            if all(sign in self._alphabet for sign in piece):
                return bytes(self._alphabet[sign] for sign in piece)
            return piece.encode()
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            try:
                return bytes([int(piece[3:5], 16)])
            except ValueError:
                pass
        for old, new in self._replacements:
            piece = piece.replace(old, new)
        return piece.encode()


def _spelling(decoders: Sequence[Mapping[str, Any]]) -> _Spelling | None:
    """How pieces spell bytes under `decoders`; None: not piece by piece, so that the library has to decode."""
    kinds = {part["type"] for part in decoders}
    if kinds == {"ByteLevel"}:
        return _Spelling(byte_alphabet(), ())
    if "ByteFallback" in kinds and kinds <= {"Replace", "ByteFallback", "Fuse", "Strip"}:
        patterns = [(part["pattern"].get("String"), part["content"]) for part in decoders if part["type"] == "Replace"]
        if all(pattern for pattern, _ in patterns):
            return _Spelling(None, patterns)
    return None


def _keeps_everything(
    document: Mapping[str, Any], decoders: Sequence[Mapping[str, Any]], spellings: Sequence[bytes]
) -> bool:
    """Whether the tokenizer is byte-level, has all bytes, and nothing in it changes or drops text."""
    cuts = list(_parts(document.get("pre_tokenizer")))
    return (
        {part["type"] for part in decoders} == {"ByteLevel"}
        and document.get("normalizer") is None
        and any(part["type"] == "ByteLevel" for part in cuts)
        and not any(part.get("add_prefix_space") or part.get("behavior") == "Removed" for part in cuts)
        and not any(token["lstrip"] or token["rstrip"] for token in document["added_tokens"] if not token["special"])
        and {bytes([byte]) for byte in range(256)} <= set(spellings)
    )
