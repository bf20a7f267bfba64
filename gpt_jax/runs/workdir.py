"""The folder of a run: opened, locked, and held against what an earlier start left in it."""

import contextlib
import fcntl
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import jax

from gpt_jax.disk import is_full
from gpt_jax.errors import UserError
from gpt_jax.parallel.runtime import do_on_main_process, is_main_process

LOCK = ".lock"


@contextlib.contextmanager
def open_workdir(path: Path) -> Iterator[Path]:
    """Creates the folder where it is absent and keeps other runs out of it for as long as the block lasts.

    A run that is refused in the block leaves no folder that it has not written to.

    Raises:
      UserError: when the folder cannot be written, another process is at work in it, or its disk becomes full.
    """
    with contextlib.ExitStack() as stack:
        is_new = not path.exists()
        do_on_main_process(lambda: stack.enter_context(_lock(path)))
        try:
            yield path
        except UserError:
            if is_main_process():
                _leave_no_trace(path, is_new)
            raise
        except (OSError, RuntimeError) as error:  # array_record and Beam raise the second, with the reason as text
            if not is_full(error):
                raise
            raise UserError(
                f"no space left on the disk of {getattr(error, 'filename', None) or path}. What was saved is whole; "
                "free some space and start again to go on from it."
            ) from error


def _lock(path: Path) -> IO:
    """The lock file of the folder, locked; the kernel lets go of it when the process ends, however it ends."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = open(path / LOCK, "a")
    except OSError as error:
        raise UserError(
            f"--workdir={path}: cannot be written ({error.strerror}). Choose a folder that can: --workdir=DIR."
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise UserError(
            f"--workdir={path}: another process is training in this folder. Wait for it, stop it, or choose another "
            "--workdir."
        ) from None
    return lock


def _leave_no_trace(path: Path, is_new: bool) -> None:
    """Removes the lock, and a folder that `is_new`, after a run that was refused before it wrote anything."""
    if [entry.name for entry in path.iterdir()] == [LOCK]:
        (path / LOCK).unlink()
        if is_new:
            path.rmdir()


def cache_folder(configured: str | None) -> Path:
    """Where tokenizers and token stores are kept, shared by all runs."""
    if configured:
        return Path(configured).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpt_jax"


def environment() -> dict[str, Any]:
    """Versions, devices and commit, for the record."""
    packages = ("gpt_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "sentencepiece", "numpy")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in packages},
        "devices": [f"{device.platform}:{device.device_kind}" for device in jax.devices()],
        "processes": jax.process_count(),
        "commit": _commit(),
        "command": sys.argv[1:],
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the code, with `+changes` where the tree differs from it; None outside a git checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
        status = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if commit.returncode:
        return None
    return commit.stdout.strip() + ("+changes" if status.stdout.strip() else "")
