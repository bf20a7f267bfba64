"""Whose turn it is: exact shares over any window, through changes of the weights, known without walking there."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_jax.data.proportions import LONGEST_CYCLE, Cycle, Turns, whole_parts

WEIGHTS = st.integers(1, 7).flatmap(
    lambda n: st.lists(st.one_of(st.integers(1, 60), st.floats(0.01, 60.0)), min_size=n, max_size=n)
)


def walk(turns: Turns, phases, examples: int) -> tuple[np.ndarray, np.ndarray]:
    """(how many examples of each source came before each example, how many should have), [examples + 1, n]."""
    sources = np.array([turns.source(example) for example in range(examples)])
    shares = np.zeros((examples, len(phases[0][1])))
    for first, weights in phases:
        shares[first:] = np.array(weights) / math.fsum(weights)
    drawn = np.eye(shares.shape[1])[sources]
    return tuple(np.concatenate([np.zeros((1, x.shape[1])), np.cumsum(x, 0)]) for x in (drawn, shares))


def worst_window(counts: np.ndarray, ideal: np.ndarray, window: int = 1000) -> float:
    behind = counts - ideal
    return np.abs(behind[window:] - behind[:-window]).max()


@settings(max_examples=12, deadline=None)
@given(WEIGHTS)
def test_any_window_of_1000_examples_is_within_two_of_its_shares(weights):
    phases = [(0, weights)]
    turns = Turns(phases)
    counts, ideal = walk(turns, phases, 3000)
    assert worst_window(counts, ideal) < 2 and np.abs(counts - ideal).max() < 1
    for example in (0, 1, 999, 3000):
        assert np.array_equal(turns.counts(example), counts[example])


@settings(max_examples=8, deadline=None)
@given(WEIGHTS.filter(lambda w: len(w) > 1), st.data())
def test_windows_across_changes_of_the_weights_keep_their_shares(weights, data):
    other = data.draw(st.lists(st.integers(0, 9), min_size=len(weights), max_size=len(weights)).filter(any))
    first, second = data.draw(st.integers(1, 1400)), data.draw(st.integers(1401, 2400))
    phases = [(0, weights), (first, other), (second, weights)]
    turns = Turns(phases)
    counts, ideal = walk(turns, phases, 3500)
    assert worst_window(counts, ideal) <= 2
    for example in (0, first - 1, first, first + 1, second, 3500):  # each source goes on where it was
        assert np.array_equal(turns.counts(example), counts[example])


def test_what_a_change_leaves_behind_is_made_up_for():
    phases = [(0, [6, 8, 1, 1, 8, 7, 5]), (1006, [3, 4, 6, 5, 9, 4, 7])]
    counts, ideal = walk(Turns(phases), phases, 3000)
    assert worst_window(counts, ideal) < 1.9  # where a cycle was entered at its nearest place it was 2.08
    phases = [(0, [1, 3, 1]), (7, [0, 1, 1]), (19, [2, 0, 3]), (29, [5, 7, 11])]
    turns = Turns(phases)
    counts, _ = walk(turns, phases, 2000)
    assert all(np.array_equal(turns.counts(example), counts[example]) for example in range(2001))


def test_a_source_of_weight_nothing_is_not_drawn():
    turns = Turns([(0, [1, 0, 2]), (90, [0, 1, 1])])
    assert turns.counts(90).tolist() == [30, 0, 60] and turns.counts(190).tolist() == [30, 50, 110]


def test_a_far_away_example_is_known_at_once():
    turns = Turns([(0, [60, 22, 8, 8, 3]), (10**12, [1, 1, 1, 1, 1])])
    assert turns.counts(101 * 10**9).tolist() == [60 * 10**9, 22 * 10**9, 8 * 10**9, 8 * 10**9, 3 * 10**9]
    assert turns.counts(10**12 + 5 * 10**9).sum() == 10**12 + 5 * 10**9


@pytest.mark.parametrize(
    ("weights", "parts"),
    [([3, 1], [3, 1]), ([0.6, 0.2, 0.2], [3, 1, 1]), ([60, 22, 8, 8, 3], [60, 22, 8, 8, 3]), ([2, 0], [1, 0])],
)
def test_plain_weights_have_the_shortest_cycle(weights, parts):
    assert whole_parts(weights).tolist() == parts
    assert whole_parts([weight / math.fsum(weights) for weight in weights]).tolist() == parts


def test_a_weight_too_small_for_the_cycle_stands_there_once():
    assert whole_parts([1.0, 1e-9]).tolist() == [LONGEST_CYCLE, 1]


def test_sources_of_a_cycle_are_spread_not_clumped():
    assert Cycle([2, 1, 1]).sources.tolist() in ([0, 1, 2, 0], [0, 1, 0, 2], [0, 2, 1, 0], [0, 2, 0, 1])
