"""Which example comes when, on which device, is decided by the seed and the step alone."""

import itertools

import jax
import numpy as np
import pytest
from test_windows import Numbers

from gpt_jax.data import loader
from gpt_jax.data.batch_sizes import BatchSizes
from gpt_jax.data.loader import batch_indices, evaluation_batches, training_batches, window_order
from gpt_jax.data.windows import EvaluationWindows, Windows
from gpt_jax.errors import UserError


def sharding(data=1, sequence=1, devices=None):
    devices = jax.devices() if devices is None else devices
    if len(devices) < data * sequence:
        pytest.skip(f"needs {data * sequence} devices: JAX_NUM_CPU_DEVICES=8")
    mesh = jax.make_mesh(
        (data, sequence),
        ("data", "sequence"),
        devices=devices[: data * sequence],
        axis_types=(jax.sharding.AxisType.Auto,) * 2,
    )
    return jax.NamedSharding(mesh, jax.P("data", "sequence"))


def stream(count, first_step=0, layout=None, batch_size=8, seed=0, tokens=1001, length=10):
    windows = Windows(Numbers(tokens), length)
    batches = training_batches(
        windows,
        window_order(len(windows), seed),
        sizes=BatchSizes.constant(batch_size),
        first_step=first_step,
        sharding=layout or sharding(),
    )
    return [jax.tree.map(np.asarray, batch) for batch in itertools.islice(batches, count)]


def same(left, right):
    return all(np.array_equal(a[name], b[name]) for a, b in zip(left, right, strict=True) for name in a)


@pytest.mark.parametrize("num_windows", [1, 2, 7, 100, 1023])
def test_every_epoch_is_another_permutation_of_all_windows(num_windows):
    order = window_order(num_windows, seed=3)
    epochs = [[order[epoch * num_windows + i] for i in range(num_windows)] for epoch in range(4)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(num_windows))
    if num_windows >= 100:
        assert len({tuple(epoch) for epoch in epochs}) == 4
        assert epochs[0] != [window_order(num_windows, seed=4)[i] for i in range(num_windows)]


def test_the_order_is_known_anywhere_without_walking_there():
    order = window_order(10**9, seed=0)  # neither a billion indices nor a billion steps would end in this test
    assert all(0 <= order[place] < 10**9 for place in (0, 10**9 - 1, 10**9, 10**15))


def test_batches_follow_the_order_across_the_ends_of_epochs():
    order = window_order(100, seed=0)
    for step, batch in enumerate(stream(30)):  # 240 examples: two epochs and a part, an end in the middle of a batch
        indices = batch_indices(order, BatchSizes.constant(8), step)
        assert indices == [order[step * 8 + row] for row in range(8)]
        assert np.array_equal(batch["tokens"][:, 0], np.array(indices) * 10)
        assert np.array_equal(batch["tokens"] + 1, batch["targets"])
        assert batch["loss_mask"].all()


def test_a_resumed_stream_is_the_rest_of_the_whole_one():
    whole = stream(40)
    for first_step in (0, 1, 17, 39):
        assert same(whole[first_step:], stream(40 - first_step, first_step))
    assert not same(whole, stream(40, seed=1))


@pytest.mark.parametrize("data, sequence", [(8, 1), (4, 2), (2, 2), (1, 8), (2, 1)])
def test_sharded_batches_hold_the_same_rows_as_whole_ones(data, sequence):
    whole = stream(5, length=16)
    layout = sharding(data, sequence)
    windows = Windows(Numbers(1001), 16)
    order, sizes = window_order(len(windows), seed=0), BatchSizes.constant(8)
    batches = training_batches(windows, order, sizes=sizes, first_step=0, sharding=layout)
    for expected, batch in zip(whole, batches, strict=False):
        for name, array in batch.items():
            assert array.sharding == layout and array.shape == (8, 16)
            assert array.dtype == (np.float32 if name == "loss_mask" else np.int32)
            assert np.array_equal(array, expected[name])
            for shard in array.addressable_shards:
                assert shard.data.shape == (8 // data, 16 // sequence)
                assert np.array_equal(shard.data, expected[name][shard.index])


def test_a_process_reads_only_the_rows_that_its_devices_hold():
    class TwoOfFour:
        """The sharding of four processes' devices as the one sees it that holds rows 2-3 and 6-7, in halves."""

        def addressable_devices_indices_map(self, shape):
            assert shape == (8, 16)
            return {0: (slice(2, 4), slice(0, 8)), 1: (slice(2, 4), slice(8, 16)), 2: (slice(6, 8), slice(None))}

    rows = loader.local_rows(TwoOfFour(), (8, 16))
    assert rows == [2, 3, 6, 7]
    order = window_order(100, seed=0)
    steps = loader._RowsOfSteps(order, BatchSizes.constant(8), {8: rows})
    assert steps[5] == (5, [order[5 * 8 + row] for row in rows])
    assert steps[3:][2] == steps[5]


def test_one_step_reads_no_more_than_its_rows_and_the_prefetched_ones():
    class Counting(Windows):
        read = 0

        def batch(self, indices):
            Counting.read += len(indices)
            return super().batch(indices)

    order, sizes = window_order(100, seed=0), BatchSizes.constant(8)
    windows = Counting(Numbers(1001), 10)
    batches = training_batches(windows, order, sizes=sizes, first_step=0, sharding=sharding(), prefetch=2)
    next(batches)
    assert Counting.read <= 8 * (1 + 2)


def test_a_damaged_store_found_by_the_reading_ahead_ends_in_its_own_message():
    class Damaged(Numbers):
        def read_many(self, starts, length):
            raise UserError("the store is damaged")

    order, sizes = window_order(100, seed=0), BatchSizes.constant(8)
    with pytest.raises(UserError) as error:
        next(training_batches(Windows(Damaged(1001), 10), order, sizes=sizes, first_step=0, sharding=sharding()))
    assert str(error.value) == "the store is damaged"


@pytest.mark.parametrize("tokens, batch_size", [(1001, 8), (1002, 8), (25, 8), (961, 16)])
def test_evaluation_covers_every_token_once_in_full_batches(tokens, batch_size):
    windows = EvaluationWindows(Numbers(tokens), 10, pad=0)
    for layout in (sharding(), sharding(4, 2)):
        batches = list(evaluation_batches(windows, batch_size=batch_size, sharding=layout))
        assert len(batches) == -(-len(windows) // batch_size)
        assert all(array.shape == (batch_size, 10) for batch in batches for array in batch.values())
        predicted = np.concatenate(
            [np.asarray(batch["targets"])[np.asarray(batch["loss_mask"]) == 1] for batch in batches]
        )
        assert np.array_equal(predicted, np.arange(1, tokens))
