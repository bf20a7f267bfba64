"""Moments over the elements that a mask keeps. B sequences, T their tokens; a mask is bool, or 0 and 1."""

import jax
import jax.numpy as jnp


def masked_mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean of the elements of `x` where `mask` (broadcast to `x`) is 1, a scalar; 0 where it keeps none."""
    mask = jnp.broadcast_to(mask, x.shape)
    return jnp.sum(jnp.where(mask, x, 0)) / jnp.maximum(jnp.sum(mask), 1)


def masked_variance(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Their population variance (divided by their number), a scalar."""
    return masked_mean(jnp.square(x - masked_mean(x, mask)), mask)
