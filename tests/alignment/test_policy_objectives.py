"""What PPO and GRPO make of a minibatch, and minimise, against plain NumPy in float64."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_policies import make_bandit

from gpt_jax.alignment.grpo import GRPO
from gpt_jax.alignment.ppo import PPO

B, R = 5, 6
TOLD = SimpleNamespace(judged=lambda params, batch: params)  # a policy that says what it is given


@pytest.fixture
def minibatch() -> dict:
    draw = np.random.default_rng(0)
    mask = np.arange(R) < np.array([6, 1, 3, 5, 2])[:, None]
    arrays = {
        name: np.where(mask, draw.normal(size=(B, R)), 0) for name in ("log_probs", "reference_log_probs", "values")
    }
    ids = {"tokens": np.zeros((B, 9), int), "targets": np.zeros((B, R), int), "starts": np.zeros(B, int)}
    return arrays | ids | {"mask": mask, "scores": draw.normal(size=B), "advantages": draw.normal(size=B)}


def judged(minibatch: dict) -> dict:
    draw = np.random.default_rng(1)
    return {name: minibatch[name] + minibatch["mask"] * draw.normal(0, 0.3, (B, R)) for name in ("log_probs", "values")}


def priced(objective: PPO | GRPO, minibatch: dict, coefficient: float) -> tuple[dict, float, dict]:
    with jax.enable_x64(True):
        batch, _ = objective.prepare(minibatch, coefficient)
        loss, told = objective.loss(TOLD, judged(minibatch), batch, 1.0)
        return jax.device_get((batch, loss, told))


def surrogate(now: dict, m: dict, advantages: np.ndarray) -> np.ndarray:
    ratio = np.exp(now["log_probs"] - m["log_probs"])
    return -np.minimum(ratio * advantages, np.clip(ratio, 0.8, 1.2) * advantages)


@pytest.mark.parametrize("whiten_rewards", (False, True))
@pytest.mark.parametrize("whiten_advantages", (False, True))
def test_ppo_is_that_of_lm_human_preferences(minibatch, whiten_rewards, whiten_advantages):
    m, mask = minibatch, minibatch["mask"]
    objective = PPO(
        value_clip=0.1, value_coefficient=0.3, whiten_rewards=whiten_rewards, whiten_advantages=whiten_advantages
    )
    batch, loss, _ = priced(objective, m, 0.4)
    rewards = -0.4 * (m["log_probs"] - m["reference_log_probs"])
    rewards[np.arange(B), mask.sum(1) - 1] += m["scores"]
    if whiten_rewards:  # the mean stays
        kept = rewards[mask]
        rewards = (rewards - kept.mean()) / np.sqrt(kept.var() + 1e-8) + kept.mean()
    advantages = np.zeros((B, R))
    for row in range(B):
        later, value = 0.0, 0.0
        for t in reversed(range(mask[row].sum())):
            later = rewards[row, t] + value - m["values"][row, t] + 0.95 * later
            advantages[row, t], value = later, m["values"][row, t]
    returns = advantages + m["values"]  # of advantages before they are whitened
    if whiten_advantages:
        kept = advantages[mask]
        advantages = (advantages - kept.mean()) / np.sqrt(kept.var() + 1e-8)
    np.testing.assert_allclose(batch["advantages"][mask], advantages[mask], rtol=1e-10)
    np.testing.assert_allclose(batch["returns"][mask], returns[mask], rtol=1e-10)
    now = judged(m)
    clipped = np.clip(now["values"], m["values"] - 0.1, m["values"] + 0.1)
    value_loss = np.maximum((now["values"] - returns) ** 2, (clipped - returns) ** 2) / 2
    expected = (surrogate(now, m, advantages) + 0.3 * value_loss)[mask].mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-10)


@pytest.mark.parametrize("normalisation", ("grpo", "tokens", "dr_grpo"))
def test_grpo_is_that_of_its_papers(minibatch, normalisation):
    m, mask = minibatch, minibatch["mask"]
    _, loss, _ = priced(GRPO(beta=0.3, normalisation=normalisation), m, 0.0)
    now = judged(m)
    ratio = m["reference_log_probs"] - now["log_probs"]
    terms = surrogate(now, m, m["advantages"][:, None]) + 0.3 * (np.exp(ratio) - 1 - ratio)
    terms = np.where(mask, terms, 0)
    expected = {
        "grpo": (terms.sum(1) / mask.sum(1)).mean(),
        "tokens": terms.sum() / mask.sum(),
        "dr_grpo": terms.sum() / (B * R),
    }
    np.testing.assert_allclose(loss, expected[normalisation], rtol=1e-10)


def test_an_average_keeps_its_share_and_takes_the_rest_from_the_weights():
    iteration = make_bandit(GRPO(), average_decay=0.75).iteration
    found = iteration._average({"model": jnp.array([4.0, 0.0])}, {"model": jnp.array([0.0, 8.0])})
    np.testing.assert_array_equal(found["model"], [3, 2])
