"""Where the time until the first step goes, told once, when that step is done."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from gpt_jax.progress import clock
from gpt_jax.training.state import TrainState
from gpt_jax.training.step import Batch, StepFunction

# jax.monitoring's names: of tracing, lowering and compiling a program, of the last of them, and of reading it instead
_PROGRAMS = "/jax/core/compile/"
_COMPILING = "/jax/core/compile/backend_compile_duration"
_CACHE_READ = "/jax/compilation_cache/cache_retrieval_time_sec"

_began: float | None = None


def begin(began: float) -> None:
    """Says when the start began (`time.monotonic()`) of which the next `Startup` tells."""
    global _began
    _began = began


class Startup:
    """A stopwatch for parts that follow each other, from the beginning of the start to the end of its first step."""

    def __init__(self):
        global _began
        self._began = self._part_began = time.monotonic() if _began is None else _began
        _began = None  # a second run of the same process begins with itself
        self._parts: dict[str, float] = {}

    def end(self, part: str) -> None:
        """Ends `part`; the next one begins."""
        now = time.monotonic()
        self._parts[part] = now - self._part_began
        self._part_began = now

    def aside(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, whose time is told as `part`, and is no other part's."""

        def timed(*arguments):
            began = time.monotonic()
            result = function(*arguments)
            spent = time.monotonic() - began
            self._parts[part] = self._parts.get(part, 0.0) + spent
            self._part_began += spent
            return result

        return timed

    def watch(self, step: StepFunction, say: Callable[[str], None]) -> StepFunction:
        """`step`, whose first call is waited for; then it says where the time went."""
        first = True

        def watched(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
            nonlocal first
            if not first:
                return step(state, batch)
            first = False
            self.end("first batch")
            with compilation() as spent:
                state, metrics = step(state, batch)
                jax.block_until_ready(metrics)
            self.end("first step")
            say(self._text(spent))
            return state, metrics

        return watched

    def _text(self, spent: dict[str, float]) -> str:
        cached = f" (from the cache: {spent['cache']:.1f} s)" if spent["cache"] else ""
        running = self._parts.pop("first step") - spent["tracing"] - spent["compiling"]
        parts = [f"{part} {seconds:.1f} s" for part, seconds in self._parts.items()]
        parts += [f"tracing {spent['tracing']:.1f} s", f"compiling {spent['compiling']:.1f} s{cached}"]
        return f"first step after {clock(self._part_began - self._began)}: {', '.join(parts)}, running {running:.1f} s"


@contextlib.contextmanager
def compilation() -> Iterator[dict[str, float]]:
    """Takes the time that JAX spends on its programs within the block.

    Yields:
      What holds after the block, in seconds: `tracing` (lowering included), `compiling`, and what of the latter was
      reading compiled programs from the disk, `cache`.
    """
    spent = dict.fromkeys(("tracing", "compiling", "cache"), 0.0)
    spans: list[tuple[str, float, float]] = []

    def note_span(event: str, start: float, end: float, **details) -> None:
        if event.startswith(_PROGRAMS):
            spans.append((event, start, end))

    def note_duration(event: str, seconds: float, **details) -> None:
        if event == _CACHE_READ:
            spent["cache"] += seconds

    jax.monitoring.register_event_time_span_listener(note_span)
    jax.monitoring.register_event_duration_secs_listener(note_duration)
    try:
        yield spent
    finally:
        jax.monitoring.unregister_event_time_span_listener(note_span)
        jax.monitoring.unregister_event_duration_listener(note_duration)
        compiling = [(start, end) for event, start, end in spans if event == _COMPILING]
        spent["compiling"] = covered(compiling)
        spent["tracing"] = covered([(start, end) for _, start, end in spans]) - spent["compiling"]


def covered(spans: list[tuple[float, float]]) -> float:
    """How much time lies in any of the spans: while a program is traced, small ones may be compiled."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(end - max(start, reached), 0.0)
        reached = max(reached, end)
    return total
