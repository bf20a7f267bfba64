"""Schedules: the value at every update, by the written formula."""

import math

import pytest

from gpt_jax.errors import UserError
from gpt_jax.training.schedules import make_schedule


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
