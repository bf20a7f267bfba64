"""What every tokenizer offers, and how one is kept in a folder and found again.

The folder that `save` writes holds `tokenizer.json` (the kind, and the model file with its checksum) beside the
model file. `load_tokenizer` looks the kind up in `KINDS`; a new kind is one more line there.
"""

import hashlib
import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from gpt_jax.disk import write_atomically
from gpt_jax.errors import UserError

MANIFEST = "tokenizer.json"
FORMAT = 1

# kind -> "module:class"; the class has `from_model(bytes) -> Tokenizer`. Imported only when asked for.
KINDS = {"sentencepiece": "gpt_jax.text.sentencepiece:SentencePieceTokenizer"}


@dataclass(frozen=True)
class SpecialIds:
    """Ids of the symbols that no text spells. `pad` is never trained on; the last three are for fine-tuning."""

    pad: int
    end_of_text: int
    start: int
    delimiter: int
    extract: int


class Tokenizer(Protocol):
    """Strings to ids and back, losing nothing: `decode(encode(text)) == text` for every valid Unicode string.

    kind: the name in `KINDS`.
    vocab_size: V, special symbols included.
    fingerprint: hex digest of everything that decides the ids.
    token_bytes: int32 [V], UTF-8 bytes of text that each id spells (0 for special symbols), so that
        `token_bytes[encode(text)].sum() == len(text.encode())`.
    """

    kind: str
    vocab_size: int
    specials: SpecialIds
    fingerprint: str
    token_bytes: np.ndarray

    def encode(self, text: str) -> np.ndarray:
        """Ids of `text`, int32 [n], without special symbols. UserError: `text` holds a lone surrogate."""

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of each text, on all cores."""

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text that `ids` spell; special symbols spell nothing, broken UTF-8 becomes U+FFFD."""

    def save(self, directory: Path) -> None:
        """Writes what `load_tokenizer` needs into `directory`."""


def save_model(directory: Path, kind: str, file_name: str, model: bytes) -> None:
    """Writes a one-file tokenizer. The manifest comes last: a folder without one holds no tokenizer."""
    manifest = {"format": FORMAT, "kind": kind, "file": file_name, "sha256": hashlib.sha256(model).hexdigest()}
    write_atomically(directory / file_name, model)
    write_atomically(directory / MANIFEST, json.dumps(manifest, indent=1).encode())


def load_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer that `save` wrote. UserError: none there, damaged, or of a kind this version does not know."""
    path = Path(directory) / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        kind, version = manifest["kind"], manifest["format"]
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
    return getattr(importlib.import_module(module), name).from_model(model)
