"""How far the policy has gone from the reference model, and what it pays for that."""

from typing import Literal

import jax
import jax.numpy as jnp

Estimator = Literal["k1", "k3"]
LARGEST_ERROR = 0.2  # of the adaptive controller, relative to its target


def token_kl(log_probs_BT: jax.Array, reference_log_probs_BT: jax.Array, estimator: Estimator = "k1") -> jax.Array:
    """KL(policy ‖ reference) of each token, [B, T] in nats, estimated from the one token that the policy drew.

    Args:
      estimator: k1, the log-ratio log π - log π_ref: unbiased, often negative; k3, π_ref/π - 1 + the log-ratio:
        unbiased too, never negative, and of less variance (Schulman 2020, "Approximating KL Divergence").
    """
    log_ratio_BT = log_probs_BT - reference_log_probs_BT
    match estimator:
        case "k1":
            return log_ratio_BT
        case "k3":
            return jnp.expm1(-log_ratio_BT) + log_ratio_BT
    raise ValueError(estimator)


def penalised_rewards(
    scores_B: jax.Array,
    log_probs_BT: jax.Array,
    reference_log_probs_BT: jax.Array,
    mask_BT: jax.Array,
    coefficient: jax.Array | float,
) -> jax.Array:
    """What each token earns: -β (log π - log π_ref), and the last one of an answer its score on top; [B, T].

    (Ziegler et al. 2019, §2; lm-human-preferences, train_policy.py.)

    Args:
      scores_B: of the answers, as the reward model gives them.
      mask_BT: 1 for the tokens that the policy chose; an answer without any earns nothing.
      coefficient: β, in score per nat.
    """
    mask_BT = mask_BT.astype(bool)
    time = mask_BT.shape[1]
    last_B1 = time - 1 - jnp.argmax(mask_BT[:, ::-1], axis=1, keepdims=True)
    rewards_BT = -coefficient * token_kl(log_probs_BT, reference_log_probs_BT)
    rewards_BT += jnp.where(jnp.arange(time) == last_B1, scores_B[:, None], 0)
    return jnp.where(mask_BT, rewards_BT, 0)


def next_coefficient(
    coefficient: jax.Array, kl: jax.Array, *, target: float | None, episodes: int, horizon: int = 10_000
) -> jax.Array:
    """β of the next rollout: the same, or moved towards what holds the KL at `target` (Ziegler et al. 2019, §2.2).

    β (1 + e · episodes / horizon) with e = clip(KL / target - 1, ±0.2).

    Args:
      kl: nats an answer, the mean of this rollout; target: None keeps β fixed, as InstructGPT did.
      episodes: answers of this rollout; horizon: in answers.
    """
    if target is None:
        return coefficient
    error = jnp.clip(kl / target - 1, -LARGEST_ERROR, LARGEST_ERROR)
    return coefficient * (1 + error * episodes / horizon)
