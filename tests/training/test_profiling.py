"""Which steps are traced, and what is refused."""

import gzip
import json

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_jax.errors import UserError
from gpt_jax.training.profiling import Profile, parse_steps


@given(st.integers(1, 10**6), st.integers(0, 1000))
def test_both_ends_are_profiled(first, more):
    steps = parse_steps(f"{first}:{first + more}", first + more)
    assert (steps[0], steps[-1], len(steps)) == (first, first + more, more + 1)


@pytest.mark.parametrize("text", ["13:10", "a:b", "0:3", "10", "-1:3", "1:2:3", "1.5:3", ":", "3:", "1:2\n", "１:２"])
def test_other_forms_are_refused(text):
    with pytest.raises(UserError, match="report.profile_steps=.*expected FIRST:LAST"):
        parse_steps(text)


def test_steps_beyond_the_last_are_refused():
    with pytest.raises(UserError, match="report.profile_steps='10:13': the last step of this run is 12"):
        parse_steps("10:13", 12)


@pytest.mark.parametrize("text", [None, ""])
def test_without_steps_there_is_no_profile(text):
    assert not parse_steps(text, 12)


def profiled_steps(folder, first_step: int, last_step: int) -> tuple[list[int], list[str]]:
    """Runs a loop under a profile of steps 3 to 5; the steps that its trace holds, and what was said."""
    said, state = [], jnp.zeros(())
    profile = Profile(range(3, 6), folder, said.append)
    for step in range(first_step, last_step + 1):
        profile.before(step, state)
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            state = state + 1
        profile.after(step, state)
    profile.close()
    traces = list(folder.rglob("perfetto_trace.json.gz"))
    assert len(traces) == len(said) <= 1
    events = json.loads(gzip.decompress(traces[0].read_bytes()))["traceEvents"] if traces else []
    return sorted(int(event["args"]["step_num"]) for event in events if event.get("name") == "train"), said


@pytest.mark.parametrize(
    ("first", "last", "traced", "title"),
    [(1, 8, [3, 4, 5], "steps 3 to 5"), (5, 8, [5], "steps 5 to 5"), (1, 4, [3, 4], "steps from 3")],
)
def test_a_trace_holds_those_steps_that_the_run_comes_to(first, last, traced, title, tmp_path):
    found, said = profiled_steps(tmp_path, first, last)
    assert found == traced
    assert f"profile of {title}: {tmp_path}" in said[0] and "ui.perfetto.dev" in said[0]
    assert str(next(tmp_path.rglob("perfetto_trace.json.gz"))) in said[0]


def test_a_run_beyond_these_steps_traces_nothing(tmp_path):
    assert profiled_steps(tmp_path / "profile", 6, 9) == ([], [])
    assert not (tmp_path / "profile").exists()
