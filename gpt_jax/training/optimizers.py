"""Optimizers: Optax's, put together as the papers say."""

import jax
import jax.numpy as jnp
import optax

from gpt_jax.errors import UserError
from gpt_jax.parallel.rules import path_string


def decay_mask(params) -> dict:
    """True for every tensor that weight decay acts on: those with two or more dimensions *in one layer*.

    The stacked layer axis does not count, so stacked biases and gains are not decayed; embeddings and positions are
    (GPT-1: 116,414,976 of 116,534,784 parameters).
    """

    def decayed(path, leaf) -> bool:
        stacked = path_string(path).startswith("layers/")
        return leaf.ndim - stacked >= 2

    return jax.tree_util.tree_map_with_path(decayed, params)


def make_optimizer(
    name: str,
    schedule: optax.Schedule,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
    clip_norm: float = 0.0,
    mu_dtype: str | None = None,
) -> optax.GradientTransformation:
    """Global-norm clipping, then Adam with decoupled decay (Loshchilov & Hutter 2019).

    Args:
      name: `adamw`.
      clip_norm: the largest global norm of the gradients; 0 switches clipping off.
      mu_dtype: dtype of the first moment; the parameters' by default.

    Raises:
      UserError: for an unknown name or dtype.
    """
    if name != "adamw":
        raise UserError(f"optimizer.name={name!r}: expected one of adamw.")
    if mu_dtype not in (None, "float32", "bfloat16"):
        raise UserError(f"optimizer.mu_dtype={mu_dtype!r}: expected float32 or bfloat16.")
    return optax.chain(
        optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
        optax.scale_by_adam(beta1, beta2, epsilon, mu_dtype=None if mu_dtype is None else jnp.dtype(mu_dtype)),
        optax.add_decayed_weights(weight_decay, mask=decay_mask),
        optax.scale_by_learning_rate(schedule),
    )
