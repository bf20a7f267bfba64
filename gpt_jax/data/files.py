"""Reading text files block by block, compressed or not, and what is known of one after a single scan.

Everything here names the file, and the place in it, when the content is not what it should be.
"""

import codecs
import glob
import gzip
import itertools
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from gpt_jax.disk import digest, disk_errors_explained, write_atomically
from gpt_jax.errors import UserError

BLOCK_BYTES = 2**20
COMPRESSED = (".gz", ".xz", ".zst")
_SCAN_VERSION = 1


def kind_of(path: Path) -> str:
    """ "txt" or "jsonl", by the suffix under that of the compression. UserError: anything else."""
    suffix = suffix_of(path)
    if suffix not in (".txt", ".jsonl"):
        raise UserError(
            f"Cannot tell what {path} holds from its name. Known: .txt (one document a file) and .jsonl "
            f"(one document a line), each also with {', '.join(COMPRESSED)} behind. Rename the file."
        )
    return suffix[1:]


def suffix_of(path: Path) -> str:
    """The suffix under that of the compression, in small letters, with its dot; "" where there is none."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def matching_files(patterns: str, example: str = "*.txt") -> list[Path]:
    """The files that comma-separated paths and patterns name, each once, in order; those of a pattern by name.

    UserError: nothing there, or a folder; the message shows `example`.
    """
    return list(dict.fromkeys(itertools.chain.from_iterable(_matches(one, example) for one in patterns.split(","))))


def _matches(pattern: str, example: str) -> list[Path]:
    path = Path(pattern.strip()).expanduser()
    if path.is_dir():
        raise UserError(
            f"file:{pattern}: that is a folder. Name its files, for example "
            f"file:{path}/{example} or file:{path}/**/{example}."
        )
    found = [path] if path.exists() else sorted(map(Path, glob.glob(str(path), recursive=True)))
    files = [match for match in found if match.is_file()]
    if not files:
        raise UserError(
            f"file:{pattern}: no such file (looked in {Path.cwd()}). Expected a path or a "
            f"pattern such as file:texts/{example}, several separated by commas."
        )
    return files


def blocks(path: Path, start: int = 0, open_file: Callable[[], BinaryIO] | None = None) -> Iterator[bytes]:
    """The decompressed bytes of a file from offset `start` on. UserError: it cannot be opened or decompressed.

    `open_file` opens it where it is no file of this machine; the suffix of `path` names the compression all the same.
    """
    open_file = open_file or (lambda: open(path, "rb"))
    try:
        if path.suffix.lower() not in COMPRESSED:
            with open_file() as file:
                file.seek(start)
                yield from _reads(file)
            return
        for block in _decompressed(path, open_file):
            if start < len(block):
                yield block[start:]
            start = max(0, start - len(block))
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(f"Cannot read {path}: {error.strerror}.") from None
        raise UserError(
            f"{path} is damaged or not what its name says: its {path.suffix} stream cannot be decompressed "
            f"({error}). Copy or download it again."
        ) from None


def _reads(file) -> Iterator[bytes]:
    while block := file.read(BLOCK_BYTES):
        yield block


def _decompressed(path: Path, open_file: Callable[[], BinaryIO]) -> Iterator[bytes]:
    with open_file() as packed:
        if path.suffix.lower() == ".zst":
            yield from _zstandard(packed)
        else:
            with (gzip.open if path.suffix.lower() == ".gz" else lzma.open)(packed, "rb") as file:
                yield from _unpacked(file)


def _unpacked(file) -> Iterator[bytes]:
    """As `_reads`; what stands before the damage of a file comes before the error."""
    ended = False
    while not ended:
        parts, size, damage = [], 0, None
        try:
            while size < BLOCK_BYTES and not ended:
                parts.append(file.read1(BLOCK_BYTES - size))
                size += len(parts[-1])
                ended = not parts[-1]
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            damage = error
        if size:
            yield b"".join(parts)
        if damage is not None:
            raise damage


def _zstandard(file) -> Iterator[bytes]:
    """Frame by frame: zstandard's own stream reader takes a truncated file for a short one."""
    import zstandard

    frame = None
    try:
        while data := file.read(2**14):  # small, because a block may grow by a large factor
            while data:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                yield frame.decompress(data)
                data, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    except zstandard.ZstdError as error:
        raise EOFError(error) from None
    if frame is not None:
        raise EOFError("the file ends in the middle of a frame")


def decoded(path: Path, raw: Iterable[bytes], encoding: str, start: int = 0) -> Iterator[str]:
    """The text of `raw`, which begins at offset `start` of `path`; a byte order mark is dropped.

    UserError: NUL bytes (no text file), or bytes that `encoding` does not have, with their offset.
    """
    decoder = codecs.getincrementaldecoder(encoding)()
    offset = start
    for block in itertools.chain(raw, [None]):
        held_back = len(decoder.getstate()[0])  # the bytes of a character that the last block cut in two
        try:
            text = decoder.decode(block or b"", final=block is None)
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path} is not {encoding} text: byte 0x{error.object[error.start]:02X} at offset "
                f"{offset - held_back + error.start:,} ({error.reason}). Say how it is encoded, for "
                "example data.encoding=latin-1, or convert it to UTF-8 (iconv -t utf-8)."
            ) from None
        if (nul := (block or b"").find(b"\0")) >= 0:
            raise UserError(
                f"{path} is a binary file: there is a NUL byte at offset {offset + nul:,}. data.source "
                "takes text; convert the file, or leave it out."
            )
        yield text.removeprefix("\ufeff") if offset == 0 else text
        offset += len(block or b"")


def lines(chunks: Iterable[str]) -> Iterator[str]:
    """Lines across chunks; only "\\n" ends one (JSON may hold U+2028, at which str.splitlines would cut)."""
    rest: list[str] = []
    for chunk in chunks:
        first, *others = chunk.split("\n")
        rest.append(first)
        if others:
            yield "".join(rest)
            yield from others[:-1]
            rest = [others[-1]]
    yield "".join(rest)


def check_encoding(encoding: str) -> None:
    """UserError: an encoding that Python does not know, or in which a newline is not the byte 10 (UTF-16)."""
    try:
        newline = "\n".encode(encoding)
    except LookupError:
        newline = None
    if newline != b"\n":
        raise UserError(
            f"data.encoding={encoding!r} is unknown, or does not write a newline as one byte 0x0A. Use "
            "utf-8, latin-1, cp1252, ..., or convert the files to UTF-8 (iconv -t utf-8)."
        )


def scanned(path: Path, settings: list, cache_dir: Path, scan: Callable[[], dict]) -> dict:
    """`scan()`, remembered in `cache_dir` for as long as the file keeps its size and time of change.

    `settings` is everything else that the result depends on.
    """
    status = path.stat()
    key = digest(_SCAN_VERSION, str(path.absolute()), status.st_size, status.st_mtime_ns, settings)
    return remembered(cache_dir / "scans" / f"{key}.json", scan)


def remembered(path: Path, compute: Callable[[], dict]) -> dict:
    """The JSON in `path`; if it is missing or damaged, `compute()`, which is written there."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        result = compute()
        with disk_errors_explained(path.parent):
            write_atomically(path, json.dumps(result).encode())
        return result
