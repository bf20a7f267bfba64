"""All cores of one machine: tasks go to processes, few at a time, and their results come back as they are done.

Processes are spawned, not forked, because JAX has threads by the time they start; they end with their parent, however
that ends.
"""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from gpt_jax.errors import UserError

T, R = TypeVar("T"), TypeVar("R")
_AHEAD = 2  # tasks waiting for each worker: their input stands in memory
_shared: Any = None


def cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def shared() -> Any:
    """In a task: what `Workers` was given to share."""
    return _shared


class Workers:
    """Runs functions of modules on picklable tasks; a context manager.

    Args:
      number: of processes; 1 works in this one.
      share: what every task may ask for by `shared()`; it travels once to each process.
    """

    def __init__(self, number: int, share: Any = None):
        global _shared
        self.number = number
        _shared = share
        self._pool = None
        if number > 1:
            self._pool = ProcessPoolExecutor(number, multiprocessing.get_context("spawn"), _begin, (share,))

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if self._pool is None:
            return
        processes = list((self._pool._processes or {}).values())
        self._pool.shutdown(wait=error is None, cancel_futures=True)
        if error is not None:  # Python 3.14 has terminate_workers for this
            for process in processes:
                process.terminate()

    def map(self, function: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R]:
        """`function(task)` of every task, in the order in which they end. UserError: a process was killed."""
        if self._pool is None:
            yield from map(function, tasks)
            return
        tasks, running = iter(tasks), set()
        with contextlib.suppress(StopIteration):
            while True:
                while len(running) < _AHEAD * self.number:
                    running.add(self._submit(function, next(tasks)))
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from map(self._result, done)
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            yield from map(self._result, done)

    def _submit(self, function: Callable[[T], R], task: T):
        with self._killed_explained():
            return self._pool.submit(function, task)

    def _result(self, future):
        with self._killed_explained():
            return future.result()

    @contextlib.contextmanager
    def _killed_explained(self) -> Iterator[None]:
        try:
            yield
        except BrokenProcessPool:
            raise UserError(
                f"one of the {self.number} worker processes was ended from outside, most likely because the memory "
                "was full. What is done is kept: start again to go on, with fewer workers (--config.workers=N) "
                "if it happens again; smaller chunks (--config.chunk_bytes) need another --workdir."
            ) from None


def _begin(share: Any) -> None:
    global _shared
    _shared = share
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C on a terminal reaches all; the parent ends them
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
