"""What every tokenizer offers, and how one is kept in a folder and found again.

The folder that `save` writes holds `tokenizer.json` (the kind, and the model file with its checksum) beside the
model file. `load_tokenizer` looks the kind up in `KINDS`; a new kind is one more line there. Tokenizers that other
people made are opened by `gpt_jax.text.imported`.
"""

import hashlib
import importlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from gpt_jax.disk import write_atomically
from gpt_jax.errors import UserError

MANIFEST = "tokenizer.json"
WINDOW = 4096  # characters at the end of a text in which a place to cut is looked for
FORMAT = 1

# kind -> "module:class"; the class has `from_model(bytes) -> Tokenizer`. Imported only when asked for.
KINDS = {
    "sentencepiece": "gpt_jax.text.sentencepiece:SentencePieceTokenizer",
    "openai-gpt": "gpt_jax.text.openai_gpt:OpenAIGPTTokenizer",
    "huggingface": "gpt_jax.text.huggingface:HuggingFaceTokenizer",
}

FINE_TUNING_SYMBOLS = ("start", "delimiter", "extract")  # in the order of OpenAI's ids


@dataclass(frozen=True)
class SpecialIds:
    """Ids of the symbols that no text spells (but GPT-1's end of text, which is its newline).

    pad: never trained on; where a vocabulary has no symbol for it, another symbol's id.
    end_of_text: stands between documents.
    start, delimiter, extract: for fine-tuning; None where the vocabulary has none (see `gpt_jax.text.symbols`).
    beginning_of_text: what the model saw before every text when it was trained; None: nothing.
    """

    pad: int
    end_of_text: int
    start: int | None = None
    delimiter: int | None = None
    extract: int | None = None
    beginning_of_text: int | None = None


class Tokenizer(Protocol):
    """Strings to ids and back.

    kind: the name in `KINDS`.
    vocab_size: V, special symbols included: the highest id + 1.
    fingerprint: hex digest of everything that decides the ids.
    lossless: whether `decode(encode(text)) == text` for every valid Unicode string. Otherwise the text comes back
        normalised as the kind's docstring says.
    token_bytes: int32 [V], UTF-8 bytes of text that each id spells (0 for special symbols). If lossless,
        `token_bytes[encode(text)].sum() == len(text.encode())`; otherwise it counts the normalised text.
    chat_template: the Jinja template of a chat model that came with one; None: none.
    symbol_names: {"eos_token": "</s>", ...}, spelled as the makers of an imported vocabulary do, which is what its
        chat template is given; empty for our own.
    symbols: {"</s>": 2, ...}, the special symbols as a chat template writes them; ours are "<|end_of_text|>",
        "<|start|>", "<|delimiter|>", "<|extract|>".
    """

    kind: str
    vocab_size: int
    specials: SpecialIds
    fingerprint: str
    lossless: bool
    token_bytes: np.ndarray
    chat_template: str | None
    symbol_names: Mapping[str, str]
    symbols: Mapping[str, int]

    def encode(self, text: str) -> np.ndarray:
        """Ids of `text`, int32 [n], without special symbols. UserError: `text` holds a lone surrogate."""

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of each text, on all cores where the kind can."""

    def encode_parts(self, parts: Sequence[str | int]) -> np.ndarray:
        """Ids of texts with special symbols, given by id, between them, int32 [n]: of a rendered chat template."""

    def last_cut(self, text: str) -> int:
        """Where `text`, which goes on, may be cut so that both parts' ids are those of the whole; from the end."""

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text that `ids` spell; special symbols spell nothing, broken UTF-8 becomes U+FFFD."""

    def model_file(self) -> tuple[str, bytes]:
        """Name and content of the one file from which `from_model` of this kind makes the tokenizer again."""

    def save(self, directory: Path) -> None:
        """Writes what `load_tokenizer` needs into `directory`."""


def before_last_word(text: str) -> int:
    """The place of the last single space between two words, len(text) without one: where word-wise kinds may cut."""
    matches = re.finditer(r"(?<=\S) (?=\S)", text[-WINDOW:])
    last = max((match.start() for match in matches), default=None)
    return len(text) if last is None else max(len(text) - WINDOW, 0) + last


def check_unicode(text: str) -> None:
    """UserError: `text` holds a lone surrogate, which no UTF-8 can carry."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"Text that is not valid Unicode: a lone surrogate U+{ord(text[error.start]):04X} at character "
            f"{error.start}, after {text[max(0, error.start - 20) : error.start]!r}. Clean the text "
            "(text.encode('utf-8', 'replace').decode())."
        ) from None


def own_symbols(specials: SpecialIds) -> dict[str, int]:
    """How a chat template writes the symbols of a vocabulary that does not spell them itself."""
    names = ("end_of_text", *FINE_TUNING_SYMBOLS)
    return {f"<|{name}|>": id for name in names if (id := getattr(specials, name)) is not None}


def concatenated_parts(tokenizer: "Tokenizer", parts: Sequence[str | int]) -> np.ndarray:
    """`encode_parts` where a symbol does nothing to the text beside it."""
    ids = [tokenizer.encode(part) if isinstance(part, str) else [part] for part in parts]
    return np.concatenate([np.zeros(0, np.int32), *ids]).astype(np.int32)


def save_model(directory: Path, tokenizer: Tokenizer, appended: Sequence[str] = ()) -> None:
    """Writes a one-file tokenizer. The manifest comes last: a folder without one holds no tokenizer.

    `appended`: the names of symbols that stand behind the model file's own vocabulary (see `gpt_jax.text.symbols`).
    """
    file_name, model = tokenizer.model_file()
    manifest = {
        "format": FORMAT,
        "kind": tokenizer.kind,
        "file": file_name,
        "sha256": hashlib.sha256(model).hexdigest(),
    }
    if appended:
        manifest["appended"] = list(appended)
    write_atomically(Path(directory) / file_name, model)
    write_atomically(Path(directory) / MANIFEST, json.dumps(manifest, indent=1).encode())


def load_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer that `save` wrote. UserError: none there, damaged, or of a kind this version does not know."""
    path = Path(directory) / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        kind, version, appended = manifest["kind"], manifest["format"], [*map(str, manifest.get("appended", []))]
        model = (path.parent / manifest["file"]).read_bytes()
    except FileNotFoundError as error:
        raise UserError(
            f"No tokenizer in {directory}: {error.filename} is missing. A tokenizer's folder holds "
            f"{MANIFEST} and the model file that it names."
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"The tokenizer's manifest {path} is damaged ({error!r}). Restore or rebuild it.") from None
    if version != FORMAT or kind not in KINDS:
        raise UserError(
            f"{path} holds a tokenizer of kind {kind!r}, format {version}; this version reads the kinds "
            f"{', '.join(sorted(KINDS))} in format {FORMAT}."
        )
    if hashlib.sha256(model).hexdigest() != manifest.get("sha256"):
        raise UserError(
            f"The tokenizer file {path.parent / manifest['file']} is damaged: its checksum is not the one "
            f"in {MANIFEST}. Restore or rebuild it."
        )
    module, name = KINDS[kind].split(":")
    tokenizer = getattr(importlib.import_module(module), name).from_model(model)
    if not appended:
        return tokenizer
    from gpt_jax.text.symbols import AppendedSymbols  # that module needs this one

    return AppendedSymbols(tokenizer, appended)
