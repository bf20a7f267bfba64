"""A batch that grows: sizes, sums and steps, against a slow walk over all steps."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_jax.data.batch_sizes import BatchSizes

RAMPS = st.builds(
    BatchSizes.ramp,
    first=st.integers(1, 20), full=st.integers(1, 300), examples=st.integers(1, 5000), stages=st.integers(1, 12),
)  # fmt: skip


@given(RAMPS)
def test_examples_before_a_step_are_the_sum_of_the_sizes(sizes):
    walked = list(itertools.accumulate((sizes.size(step) for step in range(400)), initial=0))
    assert [sizes.examples(step) for step in range(401)] == walked


@given(RAMPS, st.integers(0, 3000))
def test_steps_are_whole_ones_within_the_examples_and_reaching_them(sizes, examples):
    steps = sizes.steps(examples)
    assert sizes.examples(steps) <= examples < sizes.examples(steps + 1)
    reaching = sizes.reaching(examples)
    assert sizes.examples(reaching) >= examples and (reaching == 0 or sizes.examples(reaching - 1) < examples)


@given(st.integers(1, 20), st.integers(1, 300), st.integers(1, 5000), st.integers(1, 12))
def test_a_ramp_follows_its_line_in_multiples_of_its_first_batch(first, full, examples, stages):
    sizes = BatchSizes.ramp(first, full, examples, stages)
    assert sizes.full == full and sizes.sizes == tuple(sorted(set(sizes.sizes))) and len(sizes.sizes) <= stages + 1
    assert all(size % first == 0 and size < full for size in sizes.sizes[:-1])
    line = lambda seen: first + (full - first) * min(seen / examples, 1)  # noqa: E731
    for step in range(sizes.first_steps[-1]):
        seen = sizes.examples(step)  # a stage is as large as the line at its beginning, or a bit before it
        assert sizes.size(step) <= max(line(seen), first)
        assert sizes.size(step) > line(seen) - (full - first) / stages - first - 1
    assert first >= full or 0 <= sizes.examples(sizes.first_steps[-1]) - examples < full


def test_a_constant_batch_is_the_plain_product():
    sizes = BatchSizes.constant(8)
    assert [sizes.examples(step) for step in (0, 1, 10**9)] == [0, 8, 8 * 10**9]
    assert sizes.steps(100.0) == 12 and sizes.reaching(100.0) == 13 and sizes.full == 8


@pytest.mark.parametrize("first, full", [(8, 8), (16, 8)])
def test_a_ramp_that_begins_at_the_full_batch_is_none(first, full):
    assert BatchSizes.ramp(first, full, 1000, 8) == BatchSizes.constant(full)
