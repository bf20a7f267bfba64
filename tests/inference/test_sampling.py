"""What is drawn follows the distribution that the options state."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from gpt_jax.errors import UserError
from gpt_jax.inference import sampling
from gpt_jax.inference.sampling import Choosers, Sampling, choose

V = 17
LOGITS = np.random.default_rng(0).normal(0, 1.5, V).astype(np.float32)


def stated(logits, options, seen=()):
    """The distribution that the docstring of `Sampling` describes, in NumPy."""
    logits = np.asarray(logits, np.float64).copy()
    for id in seen:
        logits[id] *= 1 / options.repetition_penalty if logits[id] > 0 else options.repetition_penalty
    logits /= options.temperature
    if 0 < options.top_k < len(logits):
        logits[logits < np.sort(logits)[-options.top_k]] = -np.inf
    p = np.exp(logits - logits.max())
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    if options.top_p < 1:
        before = np.cumsum(p[order]) - p[order]
        p[order[before >= options.top_p]] = 0
    p[p < options.min_p * p.max()] = 0
    return p / p.sum()


@jax.jit
def choose_jitted(logits, choosers, numbers, seen):
    return choose(logits, choosers, numbers, seen)


def draws(options, count, seen=()):
    chooser = Choosers.of(options, 0)
    choosers = jax.tree.map(lambda x: jnp.repeat(x, count), chooser)
    mask = np.zeros((count, V), bool)
    mask[:, list(seen)] = True
    return np.asarray(choose_jitted(np.tile(LOGITS, (count, 1)), choosers, np.arange(count), mask))


@pytest.mark.parametrize(
    "options",
    [
        Sampling(),
        Sampling(temperature=1.7, top_k=5),
        Sampling(temperature=0.6, top_p=0.8),
        Sampling(top_k=9, top_p=0.7),
        Sampling(min_p=0.2),
        Sampling(temperature=2.0, top_k=12, top_p=0.95, min_p=0.05, repetition_penalty=1.5),
        Sampling(top_k=V + 3),
    ],
    ids=str,
)
def test_draws_follow_the_distribution_that_the_options_state(options):
    seen, count = (2, 5, 11), 8000
    expected = stated(LOGITS, options, seen) * count
    found = np.bincount(draws(options, count, seen), minlength=V)
    assert (found[expected == 0] == 0).all()
    kept = expected > 0
    if kept.sum() > 1:
        assert chisquare(found[kept], expected[kept]).pvalue > 1e-3


@settings(max_examples=60, deadline=None)
@given(
    logits=st.lists(st.floats(-8, 8, width=32), min_size=V, max_size=V, unique=True),
    options=st.builds(
        Sampling,
        temperature=st.floats(0.25, 4),
        top_k=st.integers(0, V + 2),
        top_p=st.floats(0.05, 1),
        min_p=st.floats(0, 0.9),
    ),
    ranks=st.sampled_from([1, 4, V]),
)
def test_what_may_be_drawn_is_what_the_options_leave(logits, options, ranks):
    """Decided by the few likeliest or, where these do not reach, by all; borders within rounding are passed over."""
    expected = stated(logits, options)
    nearby = [stated(logits, o) > 0 for o in shaken(options)]
    scaled = np.array([logits], np.float32) / np.float32(options.temperature)
    kept = np.asarray(truncated(scaled, Choosers.of(options, 0), ranks))
    sure = np.logical_and.reduce([row == (expected > 0) for row in nearby])
    np.testing.assert_array_equal((kept[0] > -np.inf)[sure], (expected > 0)[sure])


@functools.partial(jax.jit, static_argnums=2)
def truncated(logits, choosers, ranks):
    before, sampling.RANKS = sampling.RANKS, ranks
    try:
        return sampling._truncated(logits, choosers)
    finally:
        sampling.RANKS = before


def shaken(options):
    """The same with limits a little lower and higher."""
    for factor in (1 - 1e-4, 1 + 1e-4):
        yield Sampling(
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=min(options.top_p * factor, 1.0),
            min_p=min(options.min_p * factor, 1.0),
        )


def test_rows_are_drawn_each_in_its_own_way():
    ways = [Sampling(temperature=0), Sampling(seed=3), Sampling(temperature=5.0, top_k=2, seed=3), Sampling(top_p=0.1)]
    together = jax.tree.map(lambda *x: jnp.concatenate(x), *(Choosers.of(way, 1) for way in ways))
    mask, numbers = np.zeros((4, V), bool), np.arange(4)
    rows = choose_jitted(np.tile(LOGITS, (4, 1)), together, numbers, mask)
    for n, way in enumerate(ways):
        alone = choose_jitted(LOGITS[None], Choosers.of(way, 1), numbers[n : n + 1], mask[:1])
        assert int(rows[n]) == int(alone[0])
    assert int(rows[0]) == int(rows[3]) == LOGITS.argmax()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(temperature=-0.1), "temperature=-0.1"),
        (dict(temperature=float("nan")), "temperature=nan"),
        (dict(top_p=0.0), "top_p=0"),
        (dict(top_p=1.5), "top_p=1.5"),
        (dict(min_p=-1), "min_p=-1"),
        (dict(top_k=-1), "top_k=-1"),
        (dict(repetition_penalty=0), "repetition_penalty=0"),
        (dict(max_new_tokens=0), "max_new_tokens=0"),
        (dict(seed=2**32), "seed=4294967296"),
        (dict(logprobs=21), "logprobs=21: expected 0 to 20"),
        (dict(temperature=0, top_p=0.5, min_p=0.1), "temperature=0 .*top_p=0.5, min_p=0.1"),
    ],
)
def test_options_that_cannot_be_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        Sampling(**options)
