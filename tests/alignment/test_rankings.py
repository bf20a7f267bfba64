"""Orders that people type, orders of scores, and which of two models is preferred."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_jax.alignment.rankings import is_comparison, parse_order, preferences, ranks_of_scores, wilson
from gpt_jax.errors import UserError


@given(st.lists(st.integers(1, 5), min_size=1, max_size=9), st.sampled_from([" ", ", ", " > ", ">"]), st.booleans())
def test_an_order_that_is_typed_gives_its_ranks(ranks, between, spaced):
    dense = ranks_of_scores([-rank for rank in ranks])
    groups = [[str(n) for n, rank in enumerate(dense, 1) if rank == place] for place in range(1, max(dense) + 1)]
    typed = between.join((" = " if spaced else "=").join(group) for group in groups)
    assert parse_order(f" {typed} ", len(ranks)) == dense


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("1 2", "3 is missing: all 3 answers"),
        ("1 2 2 3", "2 stands there twice"),
        ("1 2 4", "'4' is none of the answers 1 to 3"),
        ("0 1 2", "'0' is none"),
        ("1 2=", "'' is none"),
        ("best", "'best' is none"),
        ("²", "'²' is none"),
        ("1" * 5000, "'111111111' is none"),
    ],
)
def test_what_is_no_order_is_told(typed, words):
    with pytest.raises(UserError, match=words):
        parse_order(typed, 3)


def test_the_highest_score_ranks_first_and_equal_scores_tie():
    assert ranks_of_scores([0.5, 2.0, -1.0, 2.0]) == [2, 1, 3, 1]
    assert is_comparison([2, 1, 1]) and not any(map(is_comparison, (None, [1], [1, 1], [])))


def test_a_model_is_preferred_by_the_pairs_that_its_answers_win():
    rows = [
        {"models": [["a"], ["b"], ["a", "b"]], "ranks": [1, 2, 3]},  # pairs of a with b: 1 > 2, 1 > 3, 3 < 2, 3 = 3
        {"models": [["a", "b"]], "ranks": [1]},
        {"models": [["a"], ["b"]], "ranks": [2, 1]},
        {"models": [["a"], ["b"]], "ranks": None},
        {"models": [["a"], ["a"]], "ranks": [1, 2]},
    ]
    [found] = preferences(rows)
    assert (found.one, found.other, found.won, found.tied, found.lost) == ("a", "b", 1, 1, 1)
    assert found.share == pytest.approx((2.5 / 4 + 1 / 2 + 0) / 3)
    assert preferences(rows[-1:]) == []


def test_the_interval_is_wilsons():
    assert wilson(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)  # Newcombe 1998 and any table of it
    low, high = wilson(1.0, 20)
    assert low == pytest.approx(20 / (20 + 1.96**2)) and high == 1.0
    draws = np.random.default_rng(0).random((400, 30)) < 0.7
    covered = [wilson(share, 30)[0] <= 0.7 <= wilson(share, 30)[1] for share in draws.mean(1)]
    assert 0.91 < np.mean(covered) < 0.99
