"""Compiled programs are kept on the disk, so that a second start reads them instead of compiling again.

JAX does the work (its persistent compilation cache); its key holds the program, the versions, the flags, the devices
and, on a CPU, the instructions that the CPU knows, so that machines of several kinds may share a home folder. What JAX
leaves to others is done here: an entry that was cut off while it was written (JAX does not write them in one move, nor
ever replaces one that it cannot read) is deleted, and so is what was not used for longest once there is too much.
"""

import contextlib
import os
from pathlib import Path

import jax
import zstandard

from gpt_jax.progress import say

MAX_BYTES = 2 * 2**30  # a training step is 0.1 to some 10 MB
MIN_COMPILE_SECONDS = 0.1  # JAX's is 1: much of what a start compiles takes less
_SUFFIX, _LAST_USE_SUFFIX = "-cache", "-atime"  # of JAX's files: the entry, and beside it, where JAX bounds the folder


def keep_compiled_programs(folder: Path) -> None:
    """Makes JAX look for compiled programs in `folder` and add what is not there; call it before anything is compiled.

    Of the environment, `JAX_COMPILATION_CACHE_DIR` goes before `folder` (its contents are mended, but not bounded), and
    `JAX_ENABLE_COMPILATION_CACHE=0` switches all of it off. A folder that cannot be written is done without.
    """
    if not jax.config.jax_enable_compilation_cache:
        return
    if chosen := jax.config.jax_compilation_cache_dir:  # by the environment, or by an earlier run of this process
        if "://" not in chosen:
            delete_damaged(Path(chosen))
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        say(f"compiled programs are not kept for the next start: {folder} cannot be written")
        return
    delete_damaged(folder)
    delete_least_recently_used(folder, MAX_BYTES)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)


def delete_damaged(folder: Path) -> None:
    """Deletes the entries that are not whole. One that another process is just writing is lost to it, and no more."""
    for entry in folder.glob(f"*{_SUFFIX}"):
        with contextlib.suppress(FileNotFoundError):  # several processes do this at once
            if not is_whole(entry):
                _delete(entry)


def delete_least_recently_used(folder: Path, max_bytes: int) -> None:
    """Deletes entries until the rest takes no more than `max_bytes`."""
    used = {}
    for entry in folder.glob(f"*{_SUFFIX}"):
        with contextlib.suppress(FileNotFoundError):
            status = entry.stat()
            used[entry] = (max(status.st_atime, status.st_mtime), status.st_size)  # some disks keep no time of reading
    total = 0
    for entry in sorted(used, key=used.__getitem__, reverse=True):
        total += used[entry][1]
        if total > max_bytes:
            _delete(entry)


def is_whole(entry: Path) -> bool:
    """Whether a file is one Zstandard frame from its beginning to its end, which its blocks' headers tell (RFC 8878).

    Reads 3 bytes of each block (128 KB at most), so that a folder of gigabytes takes milliseconds. Entries in zlib's
    format, of an environment without the zstandard package, count as whole.
    """
    with open(entry, "rb") as file:
        start = file.read(18)
        if start[:1] == b"\x78":
            return True
        try:
            checksum = 4 if zstandard.get_frame_parameters(start).has_checksum else 0
            file.seek(zstandard.frame_header_size(start))
        except zstandard.ZstdError:
            return False
        last = False
        while not last:
            if len(header := file.read(3)) < 3:
                return False
            bits = int.from_bytes(header, "little")
            last, kind, size = bits & 1, bits >> 1 & 3, bits >> 3
            file.seek(1 if kind == 1 else size, os.SEEK_CUR)  # a block of kind 1 is one byte, repeated `size` times
        return file.tell() + checksum == os.fstat(file.fileno()).st_size


def _delete(entry: Path) -> None:
    for path in (entry, entry.with_name(entry.name.removesuffix(_SUFFIX) + _LAST_USE_SUFFIX)):
        path.unlink(missing_ok=True)
