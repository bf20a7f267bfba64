"""Scaling laws: fitted to runs whose law is known, and held against published numbers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from gpt_jax.errors import UserError
from gpt_jax.planning.scaling_laws import (
    CHINCHILLA,
    GPT3_COMPUTE,
    PETAFLOP_DAY,
    Point,
    PowerLaw,
    backtest,
    compute_optimal,
    fit,
    fit_all,
    fit_points,
    frontier,
)

SIZES = (55e3, 147e3, 230e3, 442e3, 983e3)
BUDGETS = (0.8e6, 1.6e6, 3.2e6, 6.4e6)
TRUTH = PowerLaw(1.4, (60.0, 200.0), (0.35, 0.4))
exponents = st.floats(0.15, 0.7)


def points_of(law: PowerLaw, noise: float = 0.0, seed: int = 0) -> list[Point]:
    draw = np.random.default_rng(seed)
    return [
        Point(f"{N:g}@{D:g}", N, D, 6 * N * D, float(law(N, D)) * np.exp(noise * draw.normal()))
        for N in SIZES
        for D in BUDGETS
    ]


@settings(max_examples=8, deadline=None)
@given(E=st.floats(0.5, 3.0), N_share=st.floats(0.2, 2.0), D_share=st.floats(0.2, 2.0), a=exponents, b=exponents)
def test_the_law_behind_the_runs_is_found(E, N_share, D_share, a, b):
    truth = PowerLaw(E, (N_share * SIZES[2] ** a, D_share * BUDGETS[1] ** b), (a, b))
    points = points_of(truth)
    law = fit(*(np.array([getattr(p, name) for p in points]) for name in ("loss", "parameters", "tokens")))
    assert law.exponents == pytest.approx((a, b), rel=0.02)
    assert float(law(2e6, 12e6)) == pytest.approx(float(truth(2e6, 12e6)), rel=1e-3)


def test_one_run_that_went_wrong_does_not_bend_the_law():
    points = points_of(TRUTH, noise=1e-4)
    points[7] = Point("bad", points[7].parameters, points[7].tokens, points[7].compute, 1.3 * points[7].loss)
    law = fit_points(points, ("parameters", "tokens"), resamples=0).law
    assert float(law(2e6, 12e6)) == pytest.approx(float(TRUTH(2e6, 12e6)), rel=2e-3)


def test_a_run_four_times_larger_is_foretold_within_two_percent():
    for seed in range(5):
        law = fit_points(points_of(TRUTH, noise=0.004, seed=seed), ("parameters", "tokens"), resamples=0).law
        assert float(law(2.15e6, 12e6)) == pytest.approx(float(TRUTH(2.15e6, 12e6)), rel=0.02)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    x, truth, covered = np.geomspace(1, 100, 20), PowerLaw(1.0, (3.0,), (0.4,)), 0
    for seed in range(10):
        loss = truth(x) * np.exp(0.01 * np.random.default_rng(seed).normal(size=len(x)))
        points = [Point(str(c), None, None, c, float(one)) for c, one in zip(x, loss, strict=True)]
        low, high = fit_points(points, ("compute",), resamples=25, seed=seed).interval(lambda law: float(law(10.0)))
        covered += low <= truth(10.0) <= high
    assert 7 <= covered <= 10


def test_the_interval_of_a_new_run_is_wider_than_that_of_the_law():
    one = fit_points(points_of(TRUTH, noise=0.01), ("parameters", "tokens"), resamples=20)
    loss, (low, high) = one.predict(2e6, 12e6)
    of_law = one.interval(lambda law: float(law(2e6, 12e6)))
    assert low < loss < high and high - low > of_law[1] - of_law[0]


def test_the_same_seed_gives_the_same_intervals():
    first, second = (fit_points(points_of(TRUTH, 0.01), ("parameters", "tokens"), resamples=3, seed=3) for _ in "ab")
    assert first == second


@settings(max_examples=25, deadline=None)
@given(a=exponents, b=exponents, A=st.floats(10, 1e4), B=st.floats(10, 1e4), compute=st.floats(1e12, 1e24))
def test_the_best_size_is_where_a_search_finds_it(a, b, A, B, compute):
    law = PowerLaw(1.5, (A, B), (a, b))
    parameters, tokens = compute_optimal(law, compute)
    assert 6 * parameters * tokens == pytest.approx(compute)
    reducible = PowerLaw(0.0, (A, B), (a, b))
    found = minimize_scalar(
        lambda log: float(np.log(reducible(np.exp(log), compute / 6 / np.exp(log)))),
        bounds=(np.log(parameters) - 10, np.log(parameters) + 10),
        options=dict(xatol=1e-9),
    )
    assert np.log(parameters) == pytest.approx(found.x, abs=1e-3)


def test_chinchillas_constants_give_its_published_numbers():
    """Hoffmann et al. 2022, equation 10: a = 0.46 and b = 0.54 of equation 4, the losses of Chinchilla and Gopher."""
    assert float(CHINCHILLA(70e9, 1.4e12)) == pytest.approx(1.937, abs=5e-4)
    assert float(CHINCHILLA(280e9, 300e9)) == pytest.approx(1.993, abs=5e-4)
    small, large = (compute_optimal(CHINCHILLA, compute) for compute in (1e21, 1e23))
    assert np.log(large[0] / small[0]) / np.log(100) == pytest.approx(0.46, abs=0.01)
    assert np.log(large[1] / small[1]) / np.log(100) == pytest.approx(0.54, abs=0.01)


@pytest.mark.parametrize(("petaflop_days", "loss"), [(2.61, 2.454), (27.4, 2.192), (3638, 1.734)])
def test_gpt3s_constant_gives_the_losses_of_its_sizes(petaflop_days, loss):
    """125M, 1.3B and 175B at 300B tokens; 6ND of the last is 3.14e23 FLOPs."""
    assert float(GPT3_COMPUTE(petaflop_days)) == pytest.approx(loss, abs=1e-3)
    assert 3.14e23 / PETAFLOP_DAY == pytest.approx(3638, rel=2e-3)


def test_every_law_takes_the_runs_that_it_speaks_of():
    fits, refused = fit_all(points_of(TRUTH, noise=0.002), resamples=3)
    assert not refused and len(fits["L(N,D)"].points) == 20
    assert {point.tokens for point in fits["L(N)"].points} == {6.4e6} and len(fits["L(N)"].points) == 5
    assert {point.parameters for point in fits["L(D)"].points} == {983e3} and len(fits["L(D)"].points) == 4
    assert fits["L(C)"].points == tuple(frontier(fits["L(N,D)"].points))


def test_a_backtest_sees_nothing_above_a_quarter_of_the_compute():
    points = points_of(TRUTH)
    spoilt = [
        Point(p.name, p.parameters, p.tokens, p.compute, p.loss * (2 if p.compute > 9.5e12 else 1)) for p in points
    ]
    largest, foretold, count = backtest(spoilt)
    assert largest.name == "983000@6.4e+06" and foretold == pytest.approx(float(TRUTH(983e3, 6.4e6)), rel=1e-3)
    assert count == sum(4 * p.compute <= largest.compute for p in points) < len(points)
    assert backtest(points[:4]) is None and backtest([]) is None


def test_the_frontier_is_what_no_cheaper_run_beats():
    losses = {1e12: 3.0, 2e12: 2.8, 3e12: 2.9, 4e12: 2.7}
    points = [Point(str(c), None, None, c, loss) for c, loss in losses.items()]
    assert [point.loss for point in frontier(points[::-1])] == [3.0, 2.8, 2.7]


def test_runs_that_only_tell_their_compute_give_only_that_law():
    points = [Point(str(c), None, None, c, float(GPT3_COMPUTE(c))) for c in (1.0, 3.0, 10.0, 40.0)]
    fits, refused = fit_all(points, resamples=3)
    assert set(fits) == {"L(C)"} and "at least 6 runs" in refused["L(N,D)"]


@pytest.mark.parametrize(
    ("loss", "x", "words"),
    [
        ([3.0, 2.0, 1.5], [1.0, 2.0, 3.0], "needs at least 4 runs, and there are 3"),
        ([3.0, 2.0, 1.5, 1.4], [1.0, 1.0, 3.0, 3.0], "at least three values"),
        ([3.0, 2.0, float("nan"), 1.4], [1.0, 2.0, 3.0, 4.0], "diverged"),
        ([3.0, 2.0, 1.5, 1.4], [0.0, 2.0, 3.0, 4.0], "positive"),
    ],
)
def test_too_little_to_fit_is_refused(loss, x, words):
    with pytest.raises(UserError, match=words):
        fit(np.array(loss), np.array(x))
