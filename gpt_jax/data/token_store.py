"""A corpus as one long array of token ids on disk: tokenised once, found again by what it was made of, never in memory.

CACHE/tokens/FINGERPRINT/
    lock            held while building; the kernel frees it if the builder dies
    data-RANDOM/    the array: TensorStore's zarr3, shards of 4 Mi tokens, chunks of 8 Ki, each with its crc32c
    manifest.json   written last and atomically. Without it there is no store, whatever else lies in the folder
"""

import json
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorstore as ts

from gpt_jax.data.pieces import Piece
from gpt_jax.data.sources import Source
from gpt_jax.disk import digest, disk_errors_explained, locked, write_atomically
from gpt_jax.errors import UserError
from gpt_jax.progress import byte_progress
from gpt_jax.text.tokenizer import Tokenizer

FORMAT = 1
SHARD_TOKENS = 2**22  # one file; also what a builder holds in memory
CHUNK_TOKENS = 2**13  # the least that is read from disk: 16 KB of uint16
BATCH_CHARACTERS = 2**21  # tokenised at once, on all cores
CACHE_BYTES = 2**26  # of decoded chunks and shard indices, for all stores of the process together
MANIFEST = "manifest.json"

_context = ts.Context({"cache_pool": {"total_bytes_limit": CACHE_BYTES}})


class TokenStore:
    """The tokens of one split, in order, an end-of-text token after every document. Threads may share it.

    manifest: {"tokens", "documents", "bytes" (UTF-8, of text), "dtype", "source", "split", ...}.
    path: the store's folder.
    """

    def __init__(self, path: Path, manifest: dict):
        self.path = path
        self.manifest = manifest
        self._check_files()
        spec = {"driver": "zarr3", "kvstore": _kvstore(path / manifest["data"]), "recheck_cached_data": "open"}
        try:
            self._array = ts.open(spec, context=_context, read=True).result()
        except ValueError as error:
            raise self._damaged(str(error)) from error
        if self._array.shape != (len(self),):
            raise self._damaged(f"its array has {self._array.shape} tokens instead of {len(self):,}")

    def __reduce__(self):
        return type(self), (self.path, self.manifest)

    def __len__(self) -> int:
        return self.manifest["tokens"]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens start..stop-1, int32. UserError: the bytes on disk are not those that were written."""
        return self.read_many([start], stop - start)[0]

    def read_many(self, starts: Sequence[int], length: int) -> np.ndarray:
        """`length` tokens from each of `starts`, int32 [n, length], read at once. UserError: as `read`."""
        if len(starts) and not 0 <= min(starts) <= max(starts) + length <= len(self):
            raise IndexError(f"tokens {min(starts)}..{max(starts) + length} of {len(self)}")
        tokens = np.empty((len(starts), length), np.int32)
        try:
            with ts.Batch() as batch:
                reads = [self._array[int(start) : int(start) + length].read(batch=batch) for start in starts]
            for row, read in zip(tokens, reads, strict=True):
                row[:] = read.result()
        except ValueError as error:  # TensorStore's DATA_LOSS: a checksum that does not hold
            raise self._damaged(str(error)) from error
        return tokens

    def _check_files(self) -> None:
        """zarr takes a missing chunk for zeros, so every file must be there and whole."""
        for name, size in self.manifest["files"].items():
            file = self.path / self.manifest["data"] / name
            found = file.stat().st_size if file.exists() else None
            if found != size:
                raise self._damaged(
                    f"{file} is missing" if found is None else f"{file} has {found:,} bytes instead of {size:,}"
                )

    def _damaged(self, reason: str) -> UserError:
        return UserError(
            f"The token store {self.path} is damaged: {reason}. It can be built again: delete it "
            f"(rm -r {self.path}) and start the same command once more."
        )


def open_or_build(
    source: Source,
    split: str,
    tokenizer: Tokenizer,
    *,
    cache_dir: Path,
    progress: bool = True,
) -> TokenStore:
    """The tokens of `split`, built first if `cache_dir` has none for this content and this tokenizer.

    Processes that ask at once wait for the first; what a dead one left is removed. UserError: a split without text, a
    damaged store, a full or read-only disk, and what reading the source raises; a half-built store is never used.
    """
    path = Path(cache_dir) / "tokens" / digest(FORMAT, source.fingerprint(split), tokenizer.fingerprint)
    if manifest := _read_manifest(path):
        return TokenStore(path, manifest)
    with disk_errors_explained(Path(cache_dir)), locked(path / "lock"):
        if not (manifest := _read_manifest(path)):  # unless another process built it while this one waited
            manifest = _build(path, source, split, tokenizer, progress)
    return TokenStore(path, manifest)


def _read_manifest(path: Path) -> dict | None:
    """None: no store was ever finished here."""
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        if manifest.pop("checksum") == digest(manifest):
            return manifest
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise UserError(
        f"The token store {path} is damaged: {MANIFEST} is not what was written. It can be built again: "
        f"delete it (rm -r {path}) and start the same command once more."
    )


def _build(path: Path, source: Source, split: str, tokenizer: Tokenizer, progress: bool) -> dict:
    """Writes the array and then the manifest, which it returns. Holds the lock."""
    for remains in path.glob("data-*"):
        shutil.rmtree(remains)
    data = path / f"data-{uuid.uuid4().hex[:12]}"
    dtype = "uint16" if tokenizer.vocab_size <= 2**16 else "uint32"
    documents = text_bytes = 0
    try:
        writer = _Writer(data, dtype)
        with byte_progress(f"Tokenising {source.address} ({split})", source.bytes(split), progress) as advance:
            for pieces in _batches(_cut_for(tokenizer, source.pieces(split))):
                for piece, ids in zip(pieces, tokenizer.encode_batch([piece.text for piece in pieces]), strict=True):
                    writer.append(ids)
                    if piece.ends_document:
                        writer.append([tokenizer.specials.end_of_text])
                        documents += 1
                    size = len(piece.text.encode())
                    text_bytes += size
                    advance(size)
        if documents == 0:
            raise UserError(
                f"There is no text in the {split!r} split of data.source={source.address}. Give it more "
                "documents, change data.validation_fraction, or set data.validation_address."
            )
        tokens = writer.close()
    except BaseException:
        shutil.rmtree(data, ignore_errors=True)
        raise
    files = {str(file.relative_to(data)): file.stat().st_size for file in sorted(data.rglob("*")) if file.is_file()}
    manifest = {
        "format": FORMAT,
        "tokens": tokens,
        "documents": documents,
        "bytes": text_bytes,
        "dtype": dtype,
        "source": source.address,
        "split": split,
        "tokenizer": tokenizer.fingerprint,
        "data": data.name,
        "files": files,
    }
    write_atomically(path / MANIFEST, json.dumps({**manifest, "checksum": digest(manifest)}, indent=1).encode())
    return manifest


def _cut_for(tokenizer: Tokenizer, pieces: Iterator[Piece]) -> Iterator[Piece]:
    """The same documents, cut where this tokenizer's ids do not change: the end of a piece moves on to the next."""
    carried = ""
    for piece in pieces:
        text = carried + piece.text
        cut = len(text) if piece.ends_document else tokenizer.last_cut(text)
        carried = text[cut:]
        yield Piece(text[:cut], piece.ends_document)


def _batches(pieces: Iterator[Piece]) -> Iterator[list[Piece]]:
    batch, size = [], 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Writer:
    """Appends tokens to a new array, a whole shard at a time (a part of one would be read and written again)."""

    def __init__(self, folder: Path, dtype: str):
        checked = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
        sharding = {"chunk_shape": [CHUNK_TOKENS], "codecs": checked, "index_codecs": checked}
        metadata = {
            "data_type": dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [SHARD_TOKENS]}},
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        }
        # The length is not known before the end. A chunk of nothing but the fill value (0) is stored all the same.
        spec = {
            "driver": "zarr3",
            "kvstore": _kvstore(folder),
            "metadata": metadata,
            "store_data_equal_to_fill_value": True,
        }
        self._array = ts.open(spec, create=True, shape=[2**60]).result()
        self._shard = np.empty(SHARD_TOKENS, dtype)
        self._filled = self._written = 0

    def append(self, ids: Sequence[int] | np.ndarray) -> None:
        """Adds `ids`; writes the shard when it is full."""
        start = 0
        while start < len(ids):
            part = ids[start : start + SHARD_TOKENS - self._filled]
            self._shard[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            start += len(part)
            if self._filled == SHARD_TOKENS:
                self._flush()

    def close(self) -> int:
        """Writes what is left and the array's true length, which it returns."""
        self._flush()
        self._array.resize(exclusive_max=[self._written], resize_metadata_only=True).result()
        return self._written

    def _flush(self) -> None:
        if self._filled:
            self._array[self._written : self._written + self._filled].write(self._shard[: self._filled]).result()
            self._written += self._filled
            self._filled = 0


def _kvstore(folder: Path) -> dict:
    return {"driver": "file", "path": f"{folder.absolute()}/"}
