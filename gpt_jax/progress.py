"""How long work shows that it goes on: a bar on a terminal, a plain line every so often in a log file."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 20.0

T = TypeVar("T")


@contextlib.contextmanager
def byte_progress(title: str, total: int | None, enabled: bool = True) -> Iterator[Callable[[int], None]]:
    """Yields `advance(bytes)`. Shows on stderr; `total` is the bytes to expect, None where unknown."""
    if not enabled:
        yield lambda count: None
    elif sys.stderr.isatty():
        with tqdm(total=total, desc=title, unit="B", unit_scale=True) as bar:
            yield bar.update
    else:
        yield from _lines(title, total)


def _lines(title: str, total: int | None) -> Iterator[Callable[[int], None]]:
    start = last = time.monotonic()
    done = 0

    def advance(count: int) -> None:
        nonlocal done, last
        done += count
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            of_total = f" of {total / 1e6:.1f} MB ({done / total:.0%})" if total else " MB"
            say(f"{title}: {done / 1e6:.1f}{of_total}, {done / 1e6 / (last - start):.1f} MB/s")

    yield advance
    if done:
        say(f"{title}: {done / 1e6:.1f} MB in {time.monotonic() - start:.1f} s")


def batch_progress(batches: Iterable[T], total: int, *, enabled: bool = True) -> Iterator[T]:
    """The `batches`, of which there are `total`, shown as they pass."""
    if enabled and sys.stderr.isatty():
        yield from tqdm(batches, total=total, unit="batch", dynamic_ncols=True)
        return
    began = last = time.monotonic()
    for done, batch in enumerate(batches):
        if enabled and time.monotonic() - last > SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            say(f"batch {done}/{total}, {done / (last - began):.1f} batches/s")
        yield batch


def task_progress(title: str, results: Iterable[T], total: int) -> Iterator[T]:
    """The `results` of `total` tasks, shown as they come; nothing is shown of none."""
    if total and sys.stderr.isatty():
        yield from tqdm(results, total=total, desc=title, unit="task", dynamic_ncols=True)
        return
    began = last = time.monotonic()
    for done, result in enumerate(results, 1):
        if time.monotonic() - last > SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            say(f"{title}: {done} of {total}, {clock((last - began) / done * (total - done))} left")
        yield result
    if total:
        say(f"{title}: {total} in {time.monotonic() - began:.1f} s")


class StepProgress:
    """Progress over `total` steps; silent on every process but the first.

    work: of a number of steps, how much they are together, in any unit, where some take longer than others.
    """

    def __init__(
        self,
        *,
        total: int,
        start: int,
        main_process: bool,
        work: Callable[[int], float] = float,
    ):
        self._main, self._work = main_process, work
        self._total, self._start, self._began = total, start, time.monotonic()
        self._last_line = time.monotonic()
        self._bar = None
        if main_process and sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=start, unit="step", dynamic_ncols=True)

    def update(self, step: int, *, loss: float) -> None:
        """Step `step` is done."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            self._bar.update(step - self._bar.n)
        elif self._main and (time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES or step == self._total):
            self._last_line = time.monotonic()
            seconds, done = time.monotonic() - self._began, self._work(step) - self._work(self._start)
            left = clock(seconds / done * (self._work(self._total) - self._work(step)))
            rate = (step - self._start) / seconds
            self.say(f"step {step}/{self._total}: loss {loss:.3f}, {rate:.1f} steps/s, {left} left")

    def say(self, text: str) -> None:
        """Prints a line without tearing the bar."""
        if self._main:
            tqdm.write(text, file=sys.stderr) if self._bar is not None else print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self._bar is not None:
            self._bar.close()


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def say(message: str) -> None:
    """One line for the person who waits."""
    print(message, file=sys.stderr, flush=True)
