"""GRPO: several answers to each prompt, judged against each other instead of by a value function.

(Shao et al. 2024, §4.1.) Its policy loss is PPO's (policy_losses.py), its KL, where there is one, k3's (kl.py). G
prompts, K answers to each.
"""

from typing import Literal

import jax
import jax.numpy as jnp

# What one divides the summed losses by. `grpo`: each answer by its length, then by their number (the paper); `tokens`:
# all by the batch's tokens (DAPO, Yu et al. 2025); `dr_grpo`: all by answers times a constant length, so that no length
# is favoured (Liu et al. 2025).
Normalisation = Literal["grpo", "tokens", "dr_grpo"]


def group_advantages(
    rewards_GK: jax.Array, mask_GK: jax.Array, *, scale: bool = True, epsilon: float = 1e-4
) -> jax.Array:
    """(reward - mean) / (standard deviation + ε) within each prompt's answers, [G, K]; 0 where there is no answer.

    Args:
      scale: False leaves out the division, as Dr. GRPO does.
      epsilon: with TRL's; the deviation is that of a sample (K - 1), as there. Equal rewards give 0.
    """
    count_G1 = jnp.sum(mask_GK, axis=1, keepdims=True)
    mean_G1 = jnp.sum(jnp.where(mask_GK, rewards_GK, 0), axis=1, keepdims=True) / jnp.maximum(count_G1, 1)
    centred_GK = jnp.where(mask_GK, rewards_GK - mean_G1, 0)
    if not scale:
        return centred_GK
    variance_G1 = jnp.sum(jnp.square(centred_GK), axis=1, keepdims=True) / jnp.maximum(count_G1 - 1, 1)
    return centred_GK / (jnp.sqrt(variance_G1) + epsilon)


def token_weights(mask_BT: jax.Array, normalisation: Normalisation, longest: int | None = None) -> jax.Array:
    """What each token's loss counts, [B, T] float; their weighted sum is the loss of the batch.

    Args:
      mask_BT: 1 for the tokens that the policy chose; longest: for `dr_grpo`, the most tokens of an answer.
    """
    answers = mask_BT.shape[0]
    mask_BT = mask_BT.astype(jnp.result_type(float))
    match normalisation:
        case "grpo":
            return mask_BT / jnp.maximum(jnp.sum(mask_BT, axis=1, keepdims=True), 1) / answers
        case "tokens":
            return mask_BT / jnp.maximum(jnp.sum(mask_BT), 1)
        case "dr_grpo":
            return mask_BT / (answers * longest)
    raise ValueError(normalisation)
