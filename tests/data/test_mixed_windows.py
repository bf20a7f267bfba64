"""Windows of several sources: the order is decided by weights, seed and step alone, on any number of devices."""

import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_loader import same, sharding
from test_windows import Numbers

from gpt_jax.data import loader
from gpt_jax.data.batch_sizes import BatchSizes
from gpt_jax.data.loader import batch_indices, training_batches
from gpt_jax.data.mixed_windows import MixedOrder, MixedWindows
from gpt_jax.data.mixture import parse_mixture
from gpt_jax.data.windows import Windows

LENGTH = 16
CURRICULUM = '{"0": {"a": 3, "b": 1}, "7": {"b": 1, "c": 1}, "20": {"a": 1, "b": 2, "c": 5}}'
RAMP = BatchSizes((0, 4, 9), (8, 16, 24))
FINGERPRINTS = {"a": "1", "b": "2", "c": "3"}


class Offset(Numbers):
    """The tokens first, first + 1, ...: which source a window is of can be seen."""

    def __init__(self, count, first):
        super().__init__(count)
        self.first = first

    def read_many(self, starts, length):
        return super().read_many(starts, length) + self.first


def mixed(text=CURRICULUM, sizes=RAMP, seed=0, counts=(1001, 301, 161)):
    names = parse_mixture(text).names
    windows = MixedWindows(
        {
            name: Windows(Offset(count, 10_000 * i), LENGTH)
            for i, (name, count) in enumerate(zip(names, counts, strict=False))
        }
    )
    return windows, MixedOrder(windows, FINGERPRINTS, parse_mixture(text), sizes, seed)


def stream(count, first_step=0, layout=None, **settings):
    windows, order = mixed(**settings)
    batches = training_batches(windows, order, sizes=RAMP, first_step=first_step, sharding=layout or sharding())
    return [jax.tree.map(np.asarray, batch) for batch in itertools.islice(batches, count)]


def test_a_source_goes_through_permutations_of_its_own_whatever_else_is_mixed():
    windows, order = mixed()
    drawn: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for example in range(RAMP.examples(60)):
        source, window = windows.locate(order[example])
        drawn[source].append(window)
    for source, size in enumerate(windows.sizes):
        epochs = [drawn[source][start : start + size] for start in range(0, len(drawn[source]), size)]
        whole = [list(epoch) for epoch in epochs if len(epoch) == size]
        assert all(sorted(epoch) == list(range(size)) for epoch in whole)
        assert len({tuple(epoch) for epoch in whole}) == len(whole)
    assert len(drawn[2]) > 3 * windows.sizes[2]  # several epochs, across changes of weights
    alone, single = mixed('{"a": 1}')
    assert [alone.locate(single[n])[1] for n in range(50)] == drawn[0][:50]


def test_batches_grow_and_hold_what_the_order_says():
    windows, order = mixed()
    for step, batch in enumerate(stream(15)):
        indices = batch_indices(order, RAMP, step)
        assert batch["tokens"].shape == (RAMP.size(step), LENGTH)
        firsts = [10_000 * source + window * LENGTH for source, window in map(windows.locate, indices)]
        assert batch["tokens"][:, 0].tolist() == firsts
        assert np.array_equal(batch["tokens"] + 1, batch["targets"]) and batch["loss_mask"].all()


@pytest.mark.parametrize("first_step", [1, 4, 7, 8, 9, 20, 25])
def test_a_resumed_stream_is_the_rest_of_the_whole_one(first_step):
    whole = stream(30)
    assert same(whole[first_step:], stream(30 - first_step, first_step))
    assert not np.array_equal(whole[0]["tokens"], stream(1, seed=1)[0]["tokens"])


@pytest.mark.parametrize("data, sequence", [(8, 1), (4, 2), (2, 1)])
def test_the_order_is_the_same_on_every_mesh(data, sequence):
    for expected, batch in zip(stream(12), stream(12, layout=sharding(data, sequence)), strict=True):
        assert all(np.array_equal(expected[name], batch[name]) for name in expected)


def test_a_process_reads_its_rows_of_every_size():
    _, order = mixed()
    steps = loader._RowsOfSteps(order, RAMP, {8: [2, 3], 16: [4, 5, 6, 7], 24: list(range(6, 12))})
    for step in (0, 5, 30):
        rows = steps._rows[RAMP.size(step)]
        assert steps[step] == (step, [batch_indices(order, RAMP, step)[row] for row in rows])


@settings(max_examples=5, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=3, max_size=3), st.integers(0, 300))
def test_epochs_count_the_windows_that_were_drawn(weights, examples):
    windows, order = mixed(f'{{"a": {weights[0]}, "b": {weights[1]}, "c": {weights[2]}}}')
    sources = [windows.locate(order[example])[0] for example in range(examples)]
    for source, (name, epochs) in enumerate(order.epochs(examples).items()):
        assert epochs == sources.count(source) / windows.sizes[source] and name == "abc"[source]


def test_windows_are_named_by_their_source():
    windows, _ = mixed()
    assert windows.describe([0, windows.firsts[1] + 2, 5]) == "a [0, 5], b [2]"


def test_sources_of_one_length_get_permutations_of_their_own():
    _, order = mixed('{"a": 1, "b": 1}', counts=(1001, 1001))
    first, second = order._orders
    assert [first[i] for i in range(62)] != [second[i] for i in range(62)]
