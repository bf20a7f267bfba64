"""How far rewards agree with people: intervals, and length as a rule."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_jax.alignment.reward_quality import Length, draw_reliability, estimate, judge, pairs_of


def many(prompts=400, answers=3, seed=0):
    """Ranks, and rewards that follow them with noise; the third answer of every other prompt is missing."""
    draw = np.random.default_rng(seed)
    ranks = np.tile(np.arange(answers), (prompts, 1))
    mask = np.ones(ranks.shape, bool)
    mask[::2, 2] = False
    return ranks, mask, draw.normal(size=ranks.shape) - 0.5 * ranks


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_pairs_are_all_that_are_ranked_apart(seed):
    draw = np.random.default_rng(seed)
    ranks, mask = draw.integers(0, 3, (3, 4)), draw.random((3, 4)) < 0.7
    expected = {
        (g, i, j)
        for g in range(3)
        for i in range(4)
        for j in range(4)
        if mask[g, i] and mask[g, j] and ranks[g, i] < ranks[g, j]
    }
    assert set(zip(*(x.tolist() for x in pairs_of(ranks, mask)), strict=True)) == expected


def test_the_interval_of_independent_pairs_is_the_binomials_and_of_repeated_ones_no_narrower():
    ranks, mask, rewards = many(answers=3)
    pairs = pairs_of(ranks[:, :2], mask[:, :2])
    hits = pairs.hits(rewards)
    found = estimate(hits, pairs)
    half = 1.96 * np.sqrt(found.value * (1 - found.value) / len(hits))
    assert found.low == pytest.approx(found.value - half, abs=0.01)
    assert found.high == pytest.approx(found.value + half, abs=0.01)
    twice = pairs._replace(**{name: np.tile(getattr(pairs, name), 2) for name in pairs._fields})
    again = estimate(np.tile(hits, 2), twice)
    assert again.high - again.low == pytest.approx(found.high - found.low, abs=0.01)


def test_length_is_a_rule_learnt_elsewhere_and_the_gain_is_measured_pair_by_pair(tmp_path):
    ranks, mask, rewards = many()
    lengths = np.where(np.random.default_rng(1).random(ranks.shape) < 0.7, 10 * ranks, 5)
    pairs = pairs_of(ranks, mask)
    rule = Length.learnt(lengths, pairs)
    assert rule == Length(longer=False) and "shorter" in str(rule)
    found = judge(rewards, lengths, pairs, rule)
    assert found.gain.value == pytest.approx(found.accuracy.value - found.by_length.value)
    assert found.gain.low < found.gain.value < found.gain.high
    width = found.gain.high - found.gain.low
    assert width < (found.accuracy.high - found.accuracy.low) + (found.by_length.high - found.by_length.low)
    draw_reliability(found.calibration, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes()[1:4] == b"PNG"
    assert judge(-lengths, lengths, pairs, rule).gain.value == 0
