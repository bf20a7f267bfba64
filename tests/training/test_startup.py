"""The time until the first step, in parts that add up."""

import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
from hypothesis import given
from hypothesis import strategies as st

from gpt_jax.training import startup
from gpt_jax.training.startup import Startup, compilation, covered


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 10))))
def test_time_in_several_spans_counts_once(spans):
    spans = [(begin, begin + length) for begin, length in spans]
    assert covered(spans) == len({second for begin, end in spans for second in range(begin, end)})


def test_tracing_and_compiling_are_told_apart():
    step = jax.jit(lambda x: jnp.tanh(x) @ x + 0.125)
    with compilation() as first:
        step(jnp.ones((3, 3)))
    with compilation() as second:
        step(jnp.ones((3, 3)))
    assert first["tracing"] > 0 and first["compiling"] > 0 and first["cache"] == 0
    assert second["compiling"] == 0


def test_the_first_step_is_told_once_and_its_parts_add_up(monkeypatch):
    seconds = iter(range(0, 10_000, 100))
    monkeypatch.setattr(startup, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    startup.begin(-50.0)
    stopwatch, said = Startup(), []
    step = stopwatch.watch(jax.jit(lambda state, batch: (state + batch, {"loss": batch * 0.375})), said.append)
    for part in ("start", "data", "state"):
        stopwatch.end(part)
    assert step(jnp.float32(1), jnp.float32(2))[0] == 3
    assert step(jnp.float32(3), jnp.float32(2))[1]["loss"] == 0.75
    (line,) = said
    assert line.startswith("first step after 7:30: start 50.0 s, data 100.0 s, state 100.0 s, first batch 100.0 s, ")
    rest = re.search(r"tracing ([\d.]+) s, compiling ([\d.]+) s, running ([\d.]+) s$", line)
    assert abs(sum(map(float, rest.groups())) - 100) < 0.2


def test_what_is_done_beside_the_start_is_no_other_parts_time(monkeypatch):
    seconds = iter(range(0, 10_000, 100))
    monkeypatch.setattr(startup, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    stopwatch, said = Startup(), []
    evaluate = stopwatch.aside("evaluation", lambda state: state + 1)
    assert (evaluate(1), evaluate(2)) == (2, 3)
    stopwatch.watch(lambda state, batch: (state, {}), said.append)(0, 0)
    assert "evaluation 200.0 s, first batch 300.0 s" in said[0]  # of its five looks at the clock two are evaluations'


def test_a_second_run_of_the_process_begins_with_itself(monkeypatch):
    startup.begin(0.0)
    Startup()
    monkeypatch.setattr(startup, "time", SimpleNamespace(monotonic=lambda: 1000.0))
    later, said = Startup(), []
    later.watch(lambda state, batch: (state, {}), said.append)(0, 0)
    assert said[0].startswith("first step after 0:00")
