"""Sources made of files: plain text (one document a file) and JSON lines (one document a line)."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpt_jax.data.files import blocks, decoded, kind_of, lines, matching_files, scanned
from gpt_jax.data.pieces import Piece, cut_document, is_held_out
from gpt_jax.disk import digest
from gpt_jax.errors import UserError
from gpt_jax.progress import byte_progress


@dataclass(frozen=True)
class TextFile:
    """One document. Held out is its end: the last `held_out` of its bytes, from the next start of a line on."""

    path: Path
    encoding: str
    held_out: float

    @property
    def settings(self) -> list:
        """What decides the documents, beside the content."""
        return ["txt", self.encoding, self.held_out]

    def scan(self, raw: Iterable[bytes]) -> dict[str, int]:
        """Checks the whole file; the bytes of each split, for progress bars (off by up to a line)."""
        size = 0
        for text in decoded(self.path, raw, self.encoding):
            size += len(text.encode())
        held_out = int(size * self.held_out)
        return {"train": size - held_out, "valid": held_out}

    def documents(self, split: str, size: int) -> Iterator[Iterator[str]]:
        """The one document of `split`; `size` is that of the whole file, decompressed."""
        cut = int(size * (1 - self.held_out))
        if split == "train":
            yield decoded(self.path, _through_line(blocks(self.path), cut), self.encoding)
        elif cut < size:
            start = max(cut - 1, 0)  # a line may begin exactly at the cut
            rest = _after_line(blocks(self.path, start))
            yield decoded(self.path, rest, self.encoding, start)


def _through_line(raw: Iterable[bytes], cut: int) -> Iterator[bytes]:
    """`raw` up to the end of the line that holds byte `cut - 1`."""
    offset = 0
    for block in raw:
        newline = block.find(b"\n", max(0, cut - 1 - offset))
        if newline >= 0:
            yield block[: newline + 1]
            return
        yield block
        offset += len(block)


def _after_line(raw: Iterable[bytes]) -> Iterator[bytes]:
    """`raw` without its first line."""
    raw = iter(raw)
    for block in raw:
        _, newline, rest = block.partition(b"\n")
        if newline:
            yield rest
            yield from raw


@dataclass(frozen=True)
class JsonLinesFile:
    """A document a line, in a field of an object. Held out are whole documents, chosen by a hash of their text."""

    path: Path
    encoding: str
    held_out: float
    text_field: str

    @property
    def settings(self) -> list:
        """What decides the documents, beside the content."""
        return ["jsonl", self.encoding, self.held_out, self.text_field]

    def scan(self, raw: Iterable[bytes]) -> dict[str, int]:
        """Checks every line; the UTF-8 bytes of text in each split."""
        sizes = {"train": 0, "valid": 0}
        for text in self._texts(raw):
            sizes[self._split_of(text)] += len(text.encode())
        return sizes

    def documents(self, split: str, size: int) -> Iterator[Iterable[str]]:
        """The texts of `split`, in the order of the lines."""
        del size
        return ([text] for text in self._texts(blocks(self.path)) if self._split_of(text) == split)

    def _split_of(self, text: str) -> str:
        return "valid" if is_held_out(text, self.held_out) else "train"

    def _texts(self, raw: Iterable[bytes]) -> Iterator[str]:
        for number, line in enumerate(lines(decoded(self.path, raw, self.encoding)), 1):
            if not line.strip():
                continue
            where = f"{self.path}, line {number}"
            try:
                record = json.loads(line)
            except ValueError as error:
                raise UserError(
                    f"{where}: not JSON ({error}). A .jsonl file holds one object a line; correct or delete the line."
                ) from None
            if not isinstance(record, dict) or not isinstance(record.get(self.text_field), str):
                found = f"fields {', '.join(map(repr, record))}" if isinstance(record, dict) else type(record).__name__
                raise UserError(
                    f"{where}: no text in a field {self.text_field!r} (found: {found}). Name the field "
                    "that holds the text, as a string: data.text_field=NAME."
                )
            text = record[self.text_field]
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise UserError(
                    f"{where}: field {self.text_field!r} is not valid Unicode: a lone surrogate at "
                    f"character {error.start}. Correct or delete the line."
                ) from None
            yield text


class FileSource:
    """Text and JSON lines files, in the order given, as a `gpt_jax.data.sources.Source`.

    Every file is read and checked once, here, unless an earlier scan is remembered in `cache_dir`.
    UserError: an empty, binary, wrongly encoded or broken file.
    """

    def __init__(self, address: str, files: Sequence[TextFile | JsonLinesFile], cache_dir: Path):
        self.address = address
        self._files = files
        packed_size = sum(file.path.stat().st_size for file in files)  # compressed files make the bar overshoot
        with byte_progress("Checking the files", packed_size) as advance:
            self._scans = [
                scanned(file.path, file.settings, cache_dir, lambda file=file: _scan(file, advance)) for file in files
            ]

    def fingerprint(self, split: str) -> str:
        """Hex digest of the files' content and of what decides the split; not of their paths or times."""
        return digest(
            "files",
            split,
            [[file.settings, scan["sha256"]] for file, scan in zip(self._files, self._scans, strict=True)],
        )

    def bytes(self, split: str) -> int:
        """UTF-8 bytes of text to expect."""
        return sum(scan["bytes"][split] for scan in self._scans)

    def pieces(self, split: str) -> Iterator[Piece]:
        """The documents of `split`; see `cut_document`."""
        for file, scan in zip(self._files, self._scans, strict=True):
            for document in file.documents(split, scan["size"]):
                yield from cut_document(document)


def _scan(file: TextFile | JsonLinesFile, advance: Callable[[int], None]) -> dict:
    content = hashlib.sha256()
    size = 0

    def raw() -> Iterator[bytes]:
        nonlocal size
        for block in blocks(file.path):
            content.update(block)
            size += len(block)
            advance(len(block))
            yield block

    sizes = file.scan(raw())
    if not sum(sizes.values()):
        raise UserError(f"{file.path} is empty: there is no text in it. Leave it out of data.source.")
    return {"sha256": content.hexdigest(), "size": size, "bytes": sizes}


def open_files(patterns: str, *, text_field: str, encoding: str, held_out: float, cache_dir: Path) -> FileSource:
    """The source behind `file:PATTERNS`. UserError: nothing matches, a folder, an unknown suffix; see `FileSource`."""
    files = [
        TextFile(path, encoding, held_out)
        if kind_of(path) == "txt"
        else JsonLinesFile(path, encoding, held_out, text_field)
        for path in matching_files(patterns)
    ]
    return FileSource(f"file:{patterns}", files, cache_dir)
