"""PPO's objectives, token by token, and what one looks at while they are at work (Schulman et al. 2017).

The losses come unreduced, [B, T]: what a step minimises is their mean over the tokens that the policy chose, over the
whole minibatch, however that is divided over devices or worked off in parts.
"""

import jax
import jax.numpy as jnp

from gpt_jax.alignment.kl import token_kl
from gpt_jax.alignment.masked import masked_mean, masked_variance


def policy_losses(
    log_probs_BT: jax.Array, old_log_probs_BT: jax.Array, advantages_BT: jax.Array, *, clip: float = 0.2
) -> jax.Array:
    """-min(ratio · A, clip(ratio, 1 ± `clip`) · A) with ratio = π / π_old (paper, equation 7), [B, T].

    Args:
      old_log_probs_BT: those of the policy that drew the tokens; advantages_BT: no gradient flows through either.
    """
    ratio_BT = jnp.exp(log_probs_BT - jax.lax.stop_gradient(old_log_probs_BT))
    advantages_BT = jax.lax.stop_gradient(advantages_BT)
    return jnp.maximum(-advantages_BT * ratio_BT, -advantages_BT * jnp.clip(ratio_BT, 1 - clip, 1 + clip))


def value_losses(
    values_BT: jax.Array, old_values_BT: jax.Array, returns_BT: jax.Array, *, clip: float = 0.2
) -> jax.Array:
    """½ max((V - R)², (V_clipped - R)²), V_clipped within `clip` of the value at the rollout; [B, T].

    (lm-human-preferences, train_policy.py.)
    """
    old_values_BT, returns_BT = jax.lax.stop_gradient((old_values_BT, returns_BT))
    clipped_BT = jnp.clip(values_BT, old_values_BT - clip, old_values_BT + clip)
    return jnp.maximum(jnp.square(values_BT - returns_BT), jnp.square(clipped_BT - returns_BT)) / 2


def token_entropy(logits_BTV: jax.Array) -> jax.Array:
    """Entropy of each position's distribution, [B, T] in nats; float32 (or wider)."""
    logits_BTV = logits_BTV.astype(jnp.promote_types(logits_BTV.dtype, jnp.float32))
    log_probs_BTV = jax.nn.log_softmax(logits_BTV)
    # Of a token that cannot come (-inf) 0 · log 0 is 0.
    return -jnp.sum(jnp.where(jnp.isneginf(log_probs_BTV), 0, jnp.exp(log_probs_BTV) * log_probs_BTV), axis=-1)


def explained_variance(values_BT: jax.Array, returns_BT: jax.Array, mask_BT: jax.Array) -> jax.Array:
    """1 - Var(returns - values) / Var(returns), a scalar: 1 where values foretell all, 0 where a constant would do."""
    variance = masked_variance(returns_BT, mask_BT)
    return 1 - masked_variance(returns_BT - values_BT, mask_BT) / variance


def policy_metrics(
    log_probs_BT: jax.Array, old_log_probs_BT: jax.Array, mask_BT: jax.Array, *, clip: float = 0.2
) -> dict[str, jax.Array]:
    """Scalars over a minibatch's tokens.

    Returns:
      ratio: mean of π / π_old, near 1 in a healthy run; clip_fraction: share of the tokens whose ratio is beyond
      1 ± `clip`; approximate_kl: KL(π_old ‖ π) in nats a token, never negative.
    """
    ratio_BT = jnp.exp(log_probs_BT - old_log_probs_BT)
    return {
        "ratio": masked_mean(ratio_BT, mask_BT),
        "clip_fraction": masked_mean((jnp.abs(ratio_BT - 1) > clip).astype(ratio_BT.dtype), mask_BT),
        "approximate_kl": masked_mean(token_kl(old_log_probs_BT, log_probs_BT, "k3"), mask_BT),
    }
