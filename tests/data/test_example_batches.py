"""Batches of examples: who is in which follows from seed and step; the masks are exact; padding is little."""

import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_jax.data import example_batches
from gpt_jax.data.example_batches import (
    ExampleSet,
    TrainingPlan,
    bucket_lengths,
    evaluation_batches,
    evaluation_rows,
    training_batches,
)

PAD, START, EXTRACT = 0, 3, 5


def examples(count=100, choices=1, context_length=64, targets=True, seed=0, longest=60):
    """Examples of random lengths with 1 to `choices` sequences; their second token is their number, from 100 on."""
    random = np.random.default_rng(seed)
    sequences = [
        [
            np.array([START, 100 + number, *random.integers(6, 99, random.integers(0, longest - 3)), EXTRACT], np.int32)
            for _ in range(random.integers(1, choices + 1) if number else choices)
        ]
        for number in range(count)
    ]
    return ExampleSet(sequences, np.arange(count) % 3 if targets else None, PAD, context_length)


def sharding(data=1):
    if len(jax.devices()) < data:
        pytest.skip(f"needs {data} devices: JAX_NUM_CPU_DEVICES=8")
    mesh = jax.make_mesh((data,), ("data",), devices=jax.devices()[:data], axis_types=(jax.sharding.AxisType.Auto,))
    return jax.NamedSharding(mesh, jax.P("data"))


def stream(plan, first_step, steps, layout=None):
    batches = training_batches(plan, first_step=first_step, steps=steps, sharding=layout or sharding())
    return [jax.tree.map(np.asarray, batch) for batch in batches]


def same(left, right):
    return len(left) == len(right) and all(
        a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)
        for a, b in zip(left, right, strict=True)
    )


# --- the arrays


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 4), st.integers(0, 1000))
def test_arrays_hold_every_sequence_and_the_masks_are_exact(choices, seed):
    data = examples(12, choices, seed=seed)
    indices = np.random.default_rng(seed).permutation(12)[:5]
    length = data.bucket(indices)
    batch = data.batch(indices, np.ones(5), length)
    assert batch["tokens"].shape == (5, choices, length)
    for row, index in enumerate(indices):
        for choice in range(choices):
            own = data.sequences[index][choice] if choice < len(data.sequences[index]) else []
            tokens, targets, mask = (batch[name][row, choice] for name in ("tokens", "targets", "loss_mask"))
            assert tokens[: len(own)].tolist() == list(own) and (tokens[len(own) :] == PAD).all()
            assert targets[mask == 1].tolist() == list(own[1:])
            assert mask.tolist() == [1.0] * max(len(own) - 1, 0) + [0.0] * (length - max(len(own) - 1, 0))
            assert batch["sequence_mask"][row, choice] == (len(own) > 0)
            if len(own):
                assert tokens[batch["extract_positions"][row, choice]] == EXTRACT
            else:
                assert batch["extract_positions"][row, choice] == 0
    assert batch["index"].tolist() == list(indices) and batch["labels"].tolist() == [index % 3 for index in indices]


def test_array_types_are_those_of_the_step():
    batch = examples(4, 2).batch(np.arange(4), np.ones(4), 64)
    floats = ("loss_mask", "sequence_mask", "weights")
    integers = ("tokens", "targets", "extract_positions", "labels", "index")
    types = dict.fromkeys(floats, np.float32) | dict.fromkeys(integers, np.int32)
    assert {name: array.dtype for name, array in batch.items()} == types
    scored = ExampleSet([[np.array([3, 5])]], np.array([2.5]), PAD, 16).batch(np.array([0]), np.ones(1), 16)
    assert scored["scores"].dtype == np.float32 and scored["scores"].tolist() == [2.5] and "labels" not in scored
    assert not {"labels", "scores"} & examples(2, targets=False).batch(np.arange(2), np.ones(2), 64).keys()


def test_a_sequence_as_long_as_the_context_loses_nothing():
    data = ExampleSet([[np.arange(3, 23, dtype=np.int32)]], None, PAD, 20)
    batch = data.batch(np.array([0]), np.ones(1), data.bucket(np.array([0])))
    assert batch["tokens"].shape == (1, 1, 20) and batch["loss_mask"].sum() == 19
    assert batch["extract_positions"] == 19


# --- lengths


def test_bucket_lengths_grow_by_half_and_end_at_the_context():
    assert bucket_lengths(512) == [16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512]
    assert bucket_lengths(100) == [16, 24, 32, 48, 64, 96, 100]
    assert bucket_lengths(16) == [16] and bucket_lengths(7) == [7]


def test_a_batch_is_as_long_as_the_nearest_bucket():
    data = examples(400)
    plan = TrainingPlan(data, 8, seed=0)
    for step, batch in enumerate(stream(plan, 0, plan.steps_per_epoch)):
        longest, length = data.lengths[plan.indices(step)].max(), batch["tokens"].shape[-1]
        assert length in bucket_lengths(64) and length >= longest
        assert not [other for other in bucket_lengths(64) if longest <= other < length]


def test_sorting_by_length_saves_what_is_reported():
    data = examples(2000, choices=2, context_length=256)
    plan = TrainingPlan(data, 8, seed=0)
    positions = real = 0
    for step in range(plan.steps_per_epoch):
        indices = plan.indices(step)
        positions += 8 * 2 * data.bucket(indices)
        real += sum(len(own) for index in indices for own in data.sequences[index])
    found = plan.padding()
    assert found.share == pytest.approx(1 - real / positions)
    assert found.of_context == pytest.approx(positions / (plan.steps_per_epoch * 8 * 2 * 256))
    unsorted = sum(8 * data.bucket(np.arange(start, start + 8)) for start in range(0, 2000, 8)) / (2000 * 256)
    assert found.of_context < 0.75 * unsorted


# --- the order


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 200), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_every_example_comes_once_an_epoch_but_the_rest_of_the_last_batch(count, batch_size, seed):
    plan = TrainingPlan(examples(count), batch_size, seed)
    for epoch in range(3):
        steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        seen = np.concatenate([plan.indices(step) for step in steps])
        counts = np.bincount(seen, minlength=count)
        if count >= batch_size:
            assert len(seen) == count // batch_size * batch_size and counts.max() == 1
        else:  # fewer examples than a batch holds fill it by turns
            assert len(seen) == batch_size and counts.max() - counts.min() <= 1


def test_epochs_and_seeds_differ_in_order_and_in_who_shares_a_batch():
    data = examples(1000)
    plan = TrainingPlan(data, 8, seed=0)
    again = TrainingPlan(data, 8, seed=0)
    other = TrainingPlan(data, 8, seed=1)

    def epoch(plan, number):
        return [tuple(plan.indices(number * 125 + step)) for step in range(125)]

    assert epoch(plan, 0) == epoch(again, 0)
    batches = [set(map(frozenset, epoch(*which))) for which in ((plan, 0), (plan, 1), (other, 0))]
    assert all(len(one & two) < 5 for one, two in itertools.combinations(batches, 2))
    assert [data.lengths[list(batch)].max() for batch in epoch(plan, 0)[:20]] != sorted(
        data.lengths[list(batch)].max() for batch in epoch(plan, 0)[:20]
    )


def test_the_order_is_the_same_in_every_version():
    data = ExampleSet([[np.array([START, EXTRACT])]] * 10, None, PAD, 16)
    assert TrainingPlan(data, 4, seed=7).indices(0).tolist() == [0, 2, 8, 7]


def test_a_resumed_stream_is_the_rest_of_the_whole_one():
    plan = TrainingPlan(examples(100, choices=2), 8, seed=5)
    assert plan.steps_per_epoch == 12
    whole = stream(plan, 0, 30)
    assert len(whole) == 30
    for first_step in (1, 11, 12, 29, 30):
        assert same(whole[first_step:], stream(TrainingPlan(examples(100, choices=2), 8, seed=5), first_step, 30))


def test_any_step_is_known_without_walking_there():
    plan = TrainingPlan(examples(100), 8, seed=5)
    assert len(plan.indices(10**15)) == 8


# --- devices


@pytest.mark.parametrize("data", [2, 8])
def test_sharded_batches_hold_the_same_rows_as_whole_ones(data):
    plan = TrainingPlan(examples(100, choices=3), 8, seed=0)
    layout = sharding(data)
    whole = stream(plan, 0, 13)
    for expected, batch in zip(whole, training_batches(plan, first_step=0, steps=13, sharding=layout), strict=True):
        for name, array in batch.items():
            assert array.sharding.is_equivalent_to(layout, array.ndim) and array.shape[0] == 8
            assert np.array_equal(array, expected[name])
            assert all(shard.data.shape[0] == 8 // data for shard in array.addressable_shards)


def test_a_process_makes_only_its_rows_but_knows_the_whole_batchs_length(monkeypatch):
    monkeypatch.setattr(example_batches, "local_rows", lambda sharding, shape: [2, 3])
    made = []
    monkeypatch.setattr(
        ExampleSet, "batch", lambda self, indices, weights, length: made.append((indices, length)) or {}
    )
    monkeypatch.setattr(example_batches, "global_batches", lambda batches, *rest: [batches[k] for k in range(5)])
    data = examples(40)  # so few that a batch spans several buckets
    plan = TrainingPlan(data, 8, seed=0)
    training_batches(plan, first_step=0, steps=5, sharding=None)
    for step, (indices, length) in enumerate(made):
        assert indices.tolist() == plan.indices(step)[2:4].tolist()
        assert length == data.bucket(plan.indices(step))


# --- evaluation


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 16))
def test_evaluation_has_every_example_once_the_longest_first(count, batch_size):
    data = examples(count)
    rows = evaluation_rows(data, batch_size)
    indices = np.concatenate([indices for indices, _ in rows])
    weights = np.concatenate([weights for _, weights in rows])
    assert len(indices) == -(-count // batch_size) * batch_size
    assert sorted(indices[weights == 1]) == list(range(count)) and weights.sum() == count
    assert (np.diff(data.lengths[indices]) <= 0).all()


def test_evaluation_batches_carry_their_indices_over_devices():
    data = examples(21, choices=2)
    for layout in (sharding(), sharding(4)):
        batches = [jax.tree.map(np.asarray, b) for b in evaluation_batches(data, batch_size=8, sharding=layout)]
        assert [batch["tokens"].shape[:2] for batch in batches] == [(8, 2)] * 3
        for batch in batches:
            assert (batch["tokens"][:, 0, 1] == 100 + batch["index"]).all()
        assert sum(batch["weights"].sum() for batch in batches) == 21
