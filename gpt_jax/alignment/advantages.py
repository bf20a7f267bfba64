"""How much better each token did than the value function had foretold: advantages for PPO."""

import jax
import jax.numpy as jnp

from gpt_jax.alignment.masked import masked_mean, masked_variance


def generalized_advantages(
    rewards_BT: jax.Array, values_BT: jax.Array, mask_BT: jax.Array, *, discount: float = 1.0, decay: float = 0.95
) -> tuple[jax.Array, jax.Array]:
    """Generalized advantage estimation (Schulman et al. 2016, equation 16), and the returns that values aim at.

    A_t = δ_t + γλ A_{t'} with δ_t = r_t + γ V_{t'} - V_t, where t' is the next token that the mask keeps; behind the
    last one the value is 0. Tokens that it does not keep are passed over as if they were not there.

    Args:
      rewards_BT, values_BT: float; mask_BT: 1 for the tokens that the policy chose.
      discount: γ; InstructGPT's 1. decay: λ; 0.95 is that of lm-human-preferences.

    Returns:
      Advantages, and returns (advantages + values), [B, T] each, 0 where the mask is.
    """
    mask_BT = mask_BT.astype(bool)

    def step(later: tuple[jax.Array, jax.Array], now: tuple[jax.Array, ...]):
        later_advantage_B, later_value_B = later
        reward_B, value_B, kept_B = now
        advantage_B = reward_B + discount * later_value_B - value_B + discount * decay * later_advantage_B
        later = jnp.where(kept_B, advantage_B, later_advantage_B), jnp.where(kept_B, value_B, later_value_B)
        return later, jnp.where(kept_B, advantage_B, 0)

    zeros_B = jnp.zeros_like(values_BT[:, 0])
    by_time = (jnp.swapaxes(x, 0, 1) for x in (rewards_BT, values_BT, mask_BT))
    _, advantages_TB = jax.lax.scan(step, (zeros_B, zeros_B), tuple(by_time), reverse=True)
    advantages_BT = jnp.swapaxes(advantages_TB, 0, 1)
    return advantages_BT, jnp.where(mask_BT, advantages_BT + values_BT, 0)


def whiten(x_BT: jax.Array, mask_BT: jax.Array, *, shift_mean: bool = True, epsilon: float = 1e-8) -> jax.Array:
    """`x` with variance 1 over what the mask keeps, 0 elsewhere; population variance, as in lm-human-preferences.

    Args:
      shift_mean: whether the mean becomes 0 (advantages) or stays what it is (rewards).
    """
    mean = masked_mean(x_BT, mask_BT)
    whitened_BT = (x_BT - mean) * jax.lax.rsqrt(masked_variance(x_BT, mask_BT) + epsilon)
    return jnp.where(mask_BT, whitened_BT if shift_mean else whitened_BT + mean, 0)
