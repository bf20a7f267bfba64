"""Documents as they stand in files: cut out by one process, which is quick, and parsed by many.

A document's id never depends on which file it stands in: it is the file's own (`id_field`) or a hash of the text, with
the source's name before it. So a crawl may be cut into other shards, and every later decision stays what it was.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from gpt_jax.data.books import LATIN_1, find_books
from gpt_jax.data.curation.documents import Document
from gpt_jax.data.files import blocks, kind_of, matching_files
from gpt_jax.errors import UserError

OpenPath = Callable[[str], BinaryIO]  # opens files where they are not of this machine
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class InputFile:
    """A .txt file (one document) or a .jsonl file (one a line), either also .gz, .xz or .zst.

    size: in bytes, packed; changed: when, as far as known.
    """

    source: str
    path: str
    encoding: str = "utf-8"  # of a .txt file; JSON lines are UTF-8
    size: int = 0
    changed: int = 0

    @property
    def kind(self) -> str:
        """ "txt" or "jsonl"."""
        return kind_of(Path(self.path))


@dataclass(frozen=True)
class Format:
    """Where in a file the documents stand, and which are too much.

    Attributes:
      id_field: of a line; where it is absent, or None, the document is called by a hash of its text.
      max_bytes: of a line, or of a text file; what is longer is passed over, and named.
      on_error: what a broken line or a damaged file does.
    """

    text_field: str = "text"
    id_field: str | None = "id"
    max_bytes: int = 2**24
    on_error: Literal["stop", "skip"] = "stop"


@dataclass(frozen=True)
class Raw:
    """One document, not yet parsed, or the reason why there is none: `problem` and what to say of it."""

    file: InputFile
    line: int | None
    data: bytes
    problem: str = ""
    message: str = ""

    @property
    def place(self) -> str:
        """For messages: "crawl.jsonl.zst, line 17"."""
        return self.file.path if self.line is None else f"{self.file.path}, line {self.line}"


@dataclass(frozen=True)
class Parsed:
    """A document, and where it stands. `named_by_text`: it has no id of its own, and goes by a hash of its text."""

    document: Document
    place: str
    named_by_text: bool


@dataclass(frozen=True)
class Skipped:
    """A document that could not be read: `reason` is too_long, broken or damaged."""

    source: str
    place: str
    reason: str
    message: str


class BrokenDocument(Exception):
    """A line or a text that is not as expected; the message says what is wrong with it."""


def input_files(field: str, source: str, address: str, *, encoding: str = "utf-8") -> list[InputFile]:
    """The files behind `books` or `file:PATH-or-pattern[,...]`; `field` of the config named them.

    UserError: another address, no file, a suffix that is unknown.
    """
    if address == "books":
        return [_found(source, path, "latin-1" if path.name in LATIN_1 else "utf-8") for path in find_books()]
    scheme, _, patterns = address.partition(":")
    if scheme != "file" or not patterns:
        raise UserError(
            f"{field}: {address!r} is no known address. Expected books or file:PATH (a pattern such as "
            "file:crawl/*.jsonl.zst too, several separated by commas)."
        )
    if "://" in patterns:
        raise UserError(f"{field}: {address!r} is not on this machine: only --config.runner=beam reads it.")
    try:
        files = [_found(source, path, encoding) for path in matching_files(patterns, "*.jsonl.zst")]
    except UserError as error:
        raise UserError(f"{field}: {error}") from None
    for file in files:
        kind_of(Path(file.path))
    return files


def _found(source: str, path: Path, encoding: str) -> InputFile:
    status = path.stat()
    return InputFile(source, str(path), encoding, status.st_size, status.st_mtime_ns)


def raw_documents(
    file: InputFile, form: Format, open_file: Callable[[], BinaryIO] | None = None, advance=lambda count: None
) -> Iterator[Raw]:
    """The documents of a file in their order; memory holds one, up to the size limit.

    `advance` is told the decompressed bytes as they pass. UserError: a damaged file, unless `form.on_error` is "skip":
    then what stands before the damage is given, and a problem at the end.
    """
    number = 0
    try:
        content = _watched(blocks(Path(file.path), open_file=open_file), advance)
        if file.kind == "txt":
            yield _whole(file, content, form.max_bytes)
            return
        for number, (line, size) in enumerate(_bounded_lines(content, form.max_bytes), 1):
            if size > form.max_bytes:
                yield Raw(file, number, b"", "too_long", f"{size:,} bytes")
            elif line.strip():
                yield Raw(file, number, line)
    except UserError as error:
        message = f"{error} It stands in {file.path} after line {number}." if number else str(error)
        if form.on_error == "stop":
            raise UserError(
                f"{message} Go on without the rest of the file (--config.on_error=skip, in the same --workdir), or "
                "mend it and start in another --workdir."
            ) from None
        yield Raw(file, number or None, b"", "damaged", message)


def raw_of_files(
    files: Iterable[InputFile], form: Format, open_path: OpenPath | None = None, advance=lambda count: None
) -> Iterator[Raw]:
    """`raw_documents` of all `files`."""
    for file in files:
        opened = None if open_path is None else functools.partial(open_path, file.path)
        yield from raw_documents(file, form, opened, advance)


def bytes_to_read(files: Sequence[InputFile]) -> int | None:
    """How many bytes `raw_documents` will tell of, all `files` together; None where some are packed."""
    if all(file.path.lower().endswith((".txt", ".jsonl")) for file in files):
        return sum(file.size for file in files)
    return None


def _watched(content: Iterable[bytes], advance: Callable[[int], None]) -> Iterator[bytes]:
    for block in content:
        advance(len(block))
        yield block


def _whole(file: InputFile, content: Iterable[bytes], limit: int) -> Raw:
    kept, size = [], 0
    for block in content:
        size += len(block)
        if size <= limit:
            kept.append(block)
    if size > limit:
        return Raw(file, None, b"", "too_long", f"{size:,} bytes")
    return Raw(file, None, b"".join(kept))


def _bounded_lines(content: Iterable[bytes], limit: int) -> Iterator[tuple[bytes, int]]:
    """(line, its size); of a line over the limit nothing is kept but its size."""
    rest, size = [], 0
    for block in content:
        first, *others = block.split(b"\n")
        for piece in (first, *others[:-1]) if others else ():
            size += len(piece)
            yield (b"".join([*rest, piece]) if size <= limit else b""), size
            rest, size = [], 0
        last = others[-1] if others else first
        size += len(last)
        rest = [*rest, last] if size <= limit else []
    if size:
        yield b"".join(rest), size


def chunks(raws: Iterable[Raw], chunk_bytes: int) -> Iterator[list[Raw]]:
    """The documents in their order, in lists of about `chunk_bytes`: what a worker is given at once."""
    chunk, size = [], 0
    for raw in raws:
        chunk.append(raw)
        size += len(raw.data) + 100  # a million problems without data are no single chunk
        if size >= chunk_bytes:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def parse_chunk(chunk: Sequence[Raw], form: Format) -> tuple[list[Parsed], list[Skipped]]:
    """The documents that can be read, and the others.

    UserError: a broken one, unless `form.on_error` is "skip".
    """
    documents, skipped = [], []
    for raw in chunk:
        try:
            if raw.problem:
                skipped.append(Skipped(raw.file.source, raw.place, raw.problem, raw.message))
            else:
                documents.append(parse(raw, form))
        except BrokenDocument as error:
            if form.on_error == "stop":
                raise UserError(
                    f"{raw.place}: {error} Go on without what is broken (--config.on_error=skip, in the same "
                    "--workdir), or correct or delete it and start in another --workdir: what this one holds was made "
                    "of the file as it is."
                ) from None
            skipped.append(Skipped(raw.file.source, raw.place, "broken", str(error)))
    return documents, skipped


def parse(raw: Raw, form: Format) -> Parsed:
    """The document of a line, or of a text file. BrokenDocument: it is not as expected."""
    data, own_id = raw.data.removeprefix(_BYTE_ORDER_MARK), None
    try:
        text = data.decode(raw.file.encoding if raw.file.kind == "txt" else "utf-8")
    except UnicodeDecodeError as error:
        raise BrokenDocument(
            f"not {error.encoding} text: byte 0x{error.object[error.start]:02X} at offset {error.start:,}."
        ) from None
    if raw.file.kind == "jsonl":
        text, own_id = _of_line(text, form)
    name = own_id or hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    return Parsed(Document(f"{raw.file.source}:{name}", raw.file.source, text), raw.place, own_id is None)


def _of_line(line: str, form: Format) -> tuple[str, str | None]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BrokenDocument(f"not JSON ({error}). A .jsonl file holds one object a line.") from None
    if not isinstance(record, dict) or not isinstance(record.get(form.text_field), str):
        found = f"fields {', '.join(map(repr, record))}" if isinstance(record, dict) else type(record).__name__
        raise BrokenDocument(
            f"no text in a field {form.text_field!r} (found: {found}). Name the one that holds it: "
            "--config.text_field=NAME."
        )
    own_id = record.get(form.id_field) if form.id_field else None
    if own_id is not None and (isinstance(own_id, bool) or not isinstance(own_id, str | int) or own_id == ""):
        raise BrokenDocument(f"the field {form.id_field!r} is {own_id!r}: expected a string or a whole number.")
    for words in (record[form.text_field], str(own_id)):
        try:
            words.encode()
        except UnicodeEncodeError as error:
            raise BrokenDocument(f"no valid Unicode: a lone surrogate at character {error.start}.") from None
    return record[form.text_field], None if own_id is None else str(own_id)
