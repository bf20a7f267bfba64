"""Where text comes from: a short address to a stream of documents in pieces, with a held-out part.

books                      18 public-domain books (see books.py); the default
file:PATH-or-glob[,...]    .txt, .jsonl, each also .gz, .xz, .zst
tfds:NAME[/CONFIG]         TensorFlow Datasets, without TensorFlow
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from gpt_jax.data.books import open_books
from gpt_jax.data.files import check_encoding
from gpt_jax.data.pieces import Piece
from gpt_jax.data.text_files import open_files
from gpt_jax.errors import UserError


class Source(Protocol):
    """Documents, the same and in the same order at every reading. `split` is "train" or "valid"."""

    address: str

    def fingerprint(self, split: str) -> str:
        """Hex digest of the content of `split` and of the rule that split it; not of any path or time."""

    def bytes(self, split: str) -> int | None:
        """About how many UTF-8 bytes of text `pieces` will yield, for a progress bar; None if unknown."""

    def pieces(self, split: str) -> Iterator[Piece]:
        """The documents of `split`, none empty, in pieces of at most 1 MB."""


def open_source(
    address: str,
    *,
    text_field: str = "text",
    encoding: str = "utf-8",
    validation_fraction: float = 0.05,
    validation_address: str | None = None,
    cache_dir: Path,
) -> Source:
    """The source behind `address`. Reads and checks all its files, once per change of a file.

    Held out as "valid": what `validation_address` names, and then all of `address` is for training; else
    `validation_fraction` of `address`: the end of each text file or book, or documents chosen by a hash of their text
    (.jsonl; tfds without a `validation` split). Asking for "valid" where there is none raises UserError, and so do an
    unknown address and everything that is wrong with the files.
    """
    if not 0 <= validation_fraction < 1:
        raise UserError(f"data.validation_fraction={validation_fraction} is not a share: expected 0 <= share < 1.")
    check_encoding(encoding)
    settings = {"text_field": text_field, "encoding": encoding, "cache_dir": Path(cache_dir)}
    if validation_address:
        return _Joined(_open(address, 0.0, **settings), _open(validation_address, 0.0, **settings))
    if validation_fraction == 0:
        return _Joined(_open(address, 0.0, **settings), None)
    return _open(address, validation_fraction, **settings)


def _open(address: str, held_out: float, *, text_field: str, encoding: str, cache_dir: Path) -> Source:
    scheme, _, name = address.partition(":")
    if address == "books":
        return open_books(held_out=held_out, cache_dir=cache_dir)
    if scheme == "file" and name:
        return open_files(name, text_field=text_field, encoding=encoding, held_out=held_out, cache_dir=cache_dir)
    if scheme == "tfds" and name:
        from gpt_jax.data.tfds_source import TfdsSource  # TFDS takes seconds to import

        return TfdsSource(name, text_field=text_field, held_out=held_out, cache_dir=cache_dir)
    raise UserError(
        f"data.source={address!r} is no known address. Expected books, file:PATH (or file:FOLDER/*.txt) "
        "or tfds:NAME[/CONFIG]."
    )


class _Joined:
    """All of one source for training; held out is all of another, or nothing."""

    def __init__(self, train: Source, valid: Source | None):
        self.address = train.address
        self._sources = {"train": train, "valid": valid}

    def _source(self, split: str) -> Source:
        if self._sources[split] is None:
            raise UserError(
                "data.validation_fraction is 0, so no text is held out to evaluate on. Set it above 0, or "
                "name other text in data.validation_address."
            )
        return self._sources[split]

    def fingerprint(self, split: str) -> str:
        return self._source(split).fingerprint("train")

    def bytes(self, split: str) -> int | None:
        return self._source(split).bytes("train")

    def pieces(self, split: str) -> Iterator[Piece]:
        return self._source(split).pieces("train")
