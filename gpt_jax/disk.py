"""Files that several processes share and that a crash must not leave half-written."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from gpt_jax.errors import UserError
from gpt_jax.progress import say

_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)  # the last two: a file is there


def digest(*parts: object) -> str:
    """Hex SHA-256 of JSON-able values: the name under which something built from them is found again."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Writes `path` whole or not at all, and on the disk (not only in its cache) when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock file `path`; waits for another process that has it. The kernel frees it if the holder dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"Waiting for another process that is building {path.parent}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def disk_errors_explained(folder: Path) -> Iterator[None]:
    """Turns a full disk, or one that refuses to be written, into a UserError that names `folder`."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:  # TensorStore raises the last two, with the reason as text
        if _is_one_of(error, _FULL):
            raise UserError(
                f"The disk of the cache folder {folder} is full. Free some space or set data.cache_dir to "
                "a folder on another disk; what was being built will be built anew."
            ) from error
        if _is_one_of(error, _REFUSED):
            raise UserError(
                f"The cache folder {folder} cannot be written ({error}). Set data.cache_dir to a folder that can."
            ) from error
        raise


def is_full(error: Exception) -> bool:
    """Whether `error` is that of a full disk, or of a quota."""
    return _is_one_of(error, _FULL)


def _is_one_of(error: Exception, codes: tuple[int, ...]) -> bool:
    if isinstance(error, OSError):
        return error.errno in codes
    return any(os.strerror(code) in str(error) for code in codes)
