"""Compiled programs are kept on the disk, so that a second start reads them instead of compiling again.

JAX decides what is kept and under which key: it holds the program, the versions, the flags, the devices and, on a CPU,
the instructions that this CPU knows (its topology's fingerprint; jax/_src/cache_key.py), so that machines of several
kinds may share a home folder. The files are ours: JAX's own are not written in one move, are believed as they are, and
one that was cut off is compiled anew at every start and never replaced (jax/_src/lru_cache.py, 0.10 to 0.12).
"""

import contextlib
import hashlib
import os
from pathlib import Path

import jax
from jax._src import compilation_cache

from gpt_jax.disk import write_atomically
from gpt_jax.progress import say

MAX_BYTES = 2 * 2**30  # a training step takes 0.1 to some 10 MB
MIN_COMPILE_SECONDS = 0.1  # JAX's is 1: much of what a start compiles takes less
_SUFFIX = "-program"
_DIGEST_BYTES = hashlib.sha256().digest_size


def keep_compiled_programs(folder: Path) -> None:
    """Makes JAX look for compiled programs in `folder`, and add what is not there; before anything is compiled.

    The environment decides where it says something: `JAX_ENABLE_COMPILATION_CACHE=0` switches this off,
    `JAX_COMPILATION_CACHE_DIR` is another folder (one on `gs://` is left to JAX), `JAX_COMPILATION_CACHE_MAX_SIZE` the
    bytes it may take, `JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS` what is worth it. A folder that cannot be written is
    done without.
    """
    chosen = jax.config.jax_compilation_cache_dir
    if not jax.config.jax_enable_compilation_cache or "://" in (chosen or ""):
        return
    if not chosen and not _can_be_written(folder):
        say(f"compiled programs are not kept for the next start: {folder} cannot be written")
        return
    jax.config.update("jax_compilation_cache_dir", chosen or str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)
    max_bytes = jax.config.jax_compilation_cache_max_size
    # JAX has no public place for another store. A version without this one would use its own files, no worse than that.
    compilation_cache.get_file_cache = lambda path: (
        Programs(Path(path), MAX_BYTES if max_bytes < 0 else max_bytes),
        path,
    )


def _can_be_written(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


class Programs:
    """What JAX asks of a store of compiled programs (jax/_src/compilation_cache_interface.py).

    An entry is a digest and the program; processes may share the folder.
    """

    def __init__(self, folder: Path, max_bytes: int):
        """`max_bytes`: what was not used for longest is deleted beyond them."""
        self._path, self._max_bytes = folder, max_bytes  # JAX logs `_path`

    def get(self, key: str) -> bytes | None:
        """The program; None where it is not there or damaged, whereupon JAX compiles it and puts it again."""
        entry = self._entry(key)
        try:
            contents = entry.read_bytes()
        except FileNotFoundError:
            return None
        digest, program = contents[:_DIGEST_BYTES], contents[_DIGEST_BYTES:]
        if hashlib.sha256(program).digest() != digest:
            return None
        with contextlib.suppress(OSError):  # somebody else's folder, or deleted by another process: it has been read
            os.utime(entry)
        return program

    def put(self, key: str, value: bytes) -> None:
        """Keeps a program, whole or not at all; OSError, of which JAX warns, where the disk takes no more."""
        write_atomically(self._entry(key), hashlib.sha256(value).digest() + value)
        self._delete_least_recently_used()

    def _entry(self, key: str) -> Path:
        return self._path / f"{key}{_SUFFIX}"

    def _delete_least_recently_used(self) -> None:
        last_use = {}
        for entry in self._path.glob(f"*{_SUFFIX}*"):  # also what a kill left of an entry that was being written
            try:
                status = entry.stat()
            except FileNotFoundError:  # several processes do this at once
                continue
            last_use[entry] = (status.st_mtime_ns, status.st_size)
        total = 0
        for entry, (_, size) in sorted(last_use.items(), key=lambda item: item[1], reverse=True):
            total += size
            if total > self._max_bytes:
                entry.unlink(missing_ok=True)
