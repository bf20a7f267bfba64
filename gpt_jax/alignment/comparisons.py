"""Learning rewards from ranked answers (Ouyang et al. 2022, §3.5), and how good they then are.

G prompts, each with up to K answers. All pairs of a prompt stand in one batch element, so that each answer takes one
forward pass and no prompt counts once for each of its pairs.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


def comparison_losses(rewards_GK: jax.Array, ranks_GK: jax.Array, mask_GK: jax.Array) -> tuple[jax.Array, jax.Array]:
    """-log σ(r_better - r_worse), the mean over all pairs of a prompt's answers that are ranked apart.

    Args:
      rewards_GK: float; ranks_GK: the lower, the better; equal ranks are ties, which are no pairs.
      mask_GK: 1 where there is an answer.

    Returns:
      The loss of each prompt and the number of its pairs, [G]; 0 and 0 where it has none.
    """
    losses_GKK = -jax.nn.log_sigmoid(rewards_GK[:, :, None] - rewards_GK[:, None, :])
    return mean_over_pairs(losses_GKK, ranks_GK, mask_GK)


def mean_over_pairs(values_GKK: jax.Array, ranks_GK: jax.Array, mask_GK: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The mean of values [better answer, worse answer] over each prompt's pairs, [G], and their number."""
    better_GKK = better_pairs(ranks_GK, mask_GK)
    pairs_G = jnp.sum(better_GKK, axis=(1, 2))
    return jnp.sum(jnp.where(better_GKK, values_GKK, 0), axis=(1, 2)) / jnp.maximum(pairs_G, 1), pairs_G


def better_pairs(ranks_GK: jax.Array, mask_GK: jax.Array) -> jax.Array:
    """Bool [G, K, K]: whether answer i is ranked better than answer j."""
    exists_GK = mask_GK.astype(bool)
    both_GKK = exists_GK[:, :, None] & exists_GK[:, None, :]
    return (ranks_GK[:, :, None] < ranks_GK[:, None, :]) & both_GKK


def centred_bias(bias: jax.Array, reference_rewards: jax.Array, mask: jax.Array) -> jax.Array:
    """The reward head's bias that makes the mean reward of reference answers 0; the loss does not see the difference.

    Args:
      bias: what the head had when it gave `reference_rewards`; `mask`: 1 where there is one.
    """
    return bias - jnp.sum(jnp.where(mask, reference_rewards, 0)) / jnp.maximum(jnp.sum(mask), 1)


class Calibration(NamedTuple):
    """What the reward's probabilities are worth, over pairs.

    Attributes:
      pairs: how many; accuracy: the share in which the better answer has the higher reward (half of equal rewards).
      error: expected calibration error, |confidence - accuracy| of the bins, weighted by their pairs.
      bins: (pairs, mean confidence, accuracy) of each bin of the confidence in the answer with the higher reward,
        from 0.5 to 1; bins without pairs are left out.
    """

    pairs: int
    accuracy: float
    error: float
    bins: tuple[tuple[int, float, float], ...]


def calibration(better_P: np.ndarray, worse_P: np.ndarray, bins: int = 10) -> Calibration:
    """Of the rewards of pairs of answers, as people ranked them; confidence is σ(|difference|)."""
    difference_P = np.asarray(better_P, np.float64) - np.asarray(worse_P, np.float64)
    hits_P = (np.sign(difference_P) + 1) / 2
    confidence_P = 1 / (1 + np.exp(-np.abs(difference_P)))
    place_P = np.minimum(((confidence_P - 0.5) * 2 * bins).astype(int), bins - 1)
    found = []
    for place in range(bins):
        own = place_P == place
        if own.any():
            found.append((int(own.sum()), float(confidence_P[own].mean()), float(hits_P[own].mean())))
    error = sum(count * abs(confidence - accuracy) for count, confidence, accuracy in found) / len(hits_P)
    return Calibration(len(hits_P), float(hits_P.mean()), error, tuple(found))
