"""Schedules: the value at every update, by the written formula."""

import math

import pytest

from gpt_jax.errors import UserError
from gpt_jax.training.schedules import grown_position, make_schedule


def test_first_update_moves_and_the_warmup_ends_at_the_peak():
    schedule = make_schedule("cosine", peak=2.5e-4, steps=10_000, warmup_steps=2000)
    assert float(schedule(0)) == pytest.approx(2.5e-4 / 2000)
    assert float(schedule(999)) == pytest.approx(1.25e-4)
    assert float(schedule(1999)) == pytest.approx(2.5e-4)


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("cosine", lambda x: 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * x))),
        ("linear", lambda x: 0.1 + 0.9 * (1 - x)),
        ("constant", lambda x: 1.0),
    ],
)
def test_decay_follows_its_formula_and_stays_where_it_ends(name, formula):
    schedule = make_schedule(name, peak=1.0, steps=200, warmup_steps=20, decay_steps=120, final_fraction=0.1)
    for update in (20, 21, 70, 120):
        assert float(schedule(update - 1)) == pytest.approx(formula((update - 20) / 100), abs=1e-6)
    assert float(schedule(199)) == pytest.approx(formula(1.0), abs=1e-6)


def test_cosine_ends_at_zero():
    assert float(make_schedule("cosine", peak=1.0, steps=50, warmup_steps=5)(49)) == pytest.approx(0, abs=1e-6)


def test_a_warmup_longer_than_the_run_is_refused():
    with pytest.raises(UserError, match="warmup_steps=50 leaves nothing of the 50 steps"):
        make_schedule("cosine", peak=1.0, steps=50, warmup_steps=50)


def test_an_unknown_schedule_lists_the_known():
    with pytest.raises(UserError, match="'cosin': expected one of cosine, linear, constant"):
        make_schedule("cosin", peak=1.0, steps=50)


@pytest.mark.parametrize("name", ["cosine", "linear", "constant", "warmup_cosine", "warmup_linear"])
def test_with_a_growing_batch_the_rate_follows_the_tokens_seen(name):
    """Against a walk over the updates that adds up what each of them takes."""
    first_steps, sizes, full = (0, 10, 25), (2, 4, 8), 8
    settings = dict(peak=1.0, steps=50, warmup_steps=5.5, decay_steps=40)
    schedule = make_schedule(name, position=grown_position(first_steps, sizes), **settings)
    plain = make_schedule(name, **settings)
    seen = 0
    for update in range(90):
        seen += sizes[sum(update >= first for first in first_steps) - 1]
        expected = float(plain(seen / full - 1))  # the plain one reads at the end of its update
        assert float(schedule(update)) == pytest.approx(expected, abs=1e-6), update


def test_a_batch_that_does_not_grow_changes_no_rate():
    schedule = make_schedule("cosine", peak=1.0, steps=50, warmup_steps=5)
    grown = make_schedule("cosine", peak=1.0, steps=50, warmup_steps=5, position=grown_position((0,), (8,)))
    assert [float(schedule(update)) for update in range(60)] == [float(grown(update)) for update in range(60)]
