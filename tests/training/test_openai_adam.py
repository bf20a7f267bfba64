"""OpenAI's Adam and its schedules: against the weights that their code produced, and against the written formula."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.errors import UserError
from gpt_jax.training.optimizers import make_optimizer
from gpt_jax.training.schedules import OPENAI_SHAPES, make_schedule

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "openai_adam.npz")
STEPS = 10


def their_share(name: str, x: float, warmup: float) -> float:
    """The released code's schedules in plain floats; x and warmup are shares of the run."""
    if name == "warmup_cosine":
        return x / warmup if x <= warmup else 0.5 * (1 + math.cos(math.pi * x))
    ramp = x / warmup if x <= warmup else 1.0
    return ramp if name == "warmup_constant" else ramp * (1 - x)


def run(dtype, schedule, gradients_of_steps, **settings) -> list[dict]:
    params = {"w0": jnp.asarray(GOLDEN["w0_0"], dtype), "w1": jnp.asarray(GOLDEN["w1_0"], dtype)}
    optimizer = make_optimizer("openai_adam", schedule, **settings)
    state, history = optimizer.init(params), [params]
    for gradients in gradients_of_steps:
        updates, state = jax.jit(optimizer.update)(gradients, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        history.append(params)
    return history


def test_ten_steps_are_openais():
    schedule = make_schedule("warmup_linear", peak=0.1, steps=STEPS, warmup_steps=0.2 * STEPS)
    gradients = {"w0": jnp.asarray(GOLDEN["g0"]), "w1": jnp.asarray(GOLDEN["g1"])}
    history = run(jnp.float32, schedule, [gradients] * STEPS, weight_decay=0.01, clip_norm=1.0)
    for step, params in enumerate(history):
        for name in ("w0", "w1"):
            np.testing.assert_allclose(params[name], GOLDEN[f"{name}_{step}"], atol=5e-6, rtol=0)


@pytest.mark.parametrize("name", OPENAI_SHAPES)
def test_float64_steps_follow_the_written_formula(name):
    b1, b2, epsilon, decay, peak, warmup = 0.9, 0.999, 1e-8, 0.01, 0.1, 0.25
    rng = np.random.default_rng(0)
    # changing gradients, some so small that where epsilon stands decides
    steps = [{"w0": rng.normal(size=(4, 5)), "w1": rng.normal(size=5) * 1e-7} for _ in range(STEPS)]
    with jax.enable_x64(True):
        schedule = make_schedule(name, peak=peak, steps=STEPS, warmup_steps=warmup * STEPS)
        history = run(
            jnp.float64, schedule, [jax.tree.map(jnp.asarray, g) for g in steps],
            beta1=b1, beta2=b2, epsilon=epsilon, weight_decay=decay, clip_norm=1.0,
        )  # fmt: skip
    for key in ("w0", "w1"):
        p, m, v = GOLDEN[f"{key}_0"].astype(np.float64), 0.0, 0.0
        for t, gradients in enumerate(steps, start=1):
            norm = math.sqrt(sum((g**2).sum() for g in gradients.values()))
            g = gradients[key] / max(norm, 1.0)
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
            rate = peak * their_share(name, t / STEPS, warmup) * math.sqrt(1 - b2**t) / (1 - b1**t)
            p = p - rate * (m / (np.sqrt(v) + epsilon) + (decay * p if p.ndim > 1 else 0))
            assert history[t][key].dtype == np.float64
            np.testing.assert_allclose(history[t][key], p, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", OPENAI_SHAPES)
def test_the_schedules_are_openais_at_every_step(name):
    steps, warmup = 500, 0.03
    schedule = make_schedule(name, peak=6.25e-5, steps=steps, warmup_steps=warmup * steps)
    found = [float(schedule(count)) for count in range(steps)]
    expected = [6.25e-5 * their_share(name, t / steps, warmup) for t in range(1, steps + 1)]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-11)


def test_a_warmup_of_less_than_a_step_is_none():
    """OpenAI's 0.2% of ROCStories' 138 updates."""
    schedule = make_schedule("warmup_linear", peak=1.0, steps=138, warmup_steps=0.002 * 138)
    assert float(schedule(0)) == pytest.approx(1 - 1 / 138)
    without = make_schedule("warmup_linear", peak=1.0, steps=138)
    assert float(without(0)) == float(schedule(0))


def test_a_final_fraction_does_not_go_with_openais_schedules():
    with pytest.raises(UserError, match="final_fraction=0.1.*warmup_cosine"):
        make_schedule("warmup_cosine", peak=1.0, steps=10, final_fraction=0.1)
