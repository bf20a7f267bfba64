"""Batches of prompts with their ranked answers."""

import numpy as np

from gpt_jax.data.example_batches import TrainingPlan
from gpt_jax.data.ranked_batches import RankedSet


def ranked_set(counts, draw=None) -> RankedSet:
    """Prompts of two tokens with so many answers; answer a of prompt p is made of the number 10 p + a."""
    draw = draw or np.random.default_rng(0)
    most = max(counts)
    sequences = [
        [np.array([1, 2, *[10 * p + a] * draw.integers(1, 12)], np.int32) for a in range(count)]
        for p, count in enumerate(counts)
    ]
    ranks = np.tile(np.arange(most, dtype=np.float32), (len(counts), 1))
    starts = np.full(ranks.shape, 2)
    return RankedSet(sequences, None, 0, 64, starts=starts, columns={"ranks": ranks})


def test_a_row_has_the_answers_of_its_prompt_and_the_loss_falls_on_them():
    data = ranked_set([2, 3])
    batch = data.batch(np.array([1, 0]), np.ones(2), data.bucket(np.array([0, 1])))
    assert batch["tokens"].shape == (2, 3, 16) and batch["ranks"].shape == (2, 3)
    np.testing.assert_array_equal(batch["sequence_mask"], [[1, 1, 1], [1, 1, 0]])
    for row, prompt in enumerate((1, 0)):
        for answer, sequence in enumerate(data.sequences[prompt]):
            counted = batch["loss_mask"][row, answer] > 0
            np.testing.assert_array_equal(batch["targets"][row, answer][counted], sequence[2:])
            assert batch["tokens"][row, answer, batch["extract_positions"][row, answer]] == sequence[-1]
    assert not batch["loss_mask"][1, 2].any()


def test_prompts_with_as_many_answers_share_a_batch_so_that_few_positions_are_padding():
    data = ranked_set([2] * 64 + [9] * 32)
    plan = TrainingPlan(data, 8, seed=0)
    buckets = [data.bucket(plan.indices(step)) for step in range(plan.steps_per_epoch)]
    assert sorted(answers for _, answers in buckets) == [2] * 8 + [9] * 4
    assert data.batch(plan.indices(0), np.ones(8), buckets[0])["tokens"].shape == (8, buckets[0][1], buckets[0][0])
    tokens = sum(len(sequence) for own in data.sequences for sequence in own)
    assert plan.padding().share == 1 - tokens / sum(8 * length * answers for length, answers in buckets)
