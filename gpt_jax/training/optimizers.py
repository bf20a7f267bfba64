"""Optimizers: Optax's, put together as the papers say; and OpenAI's Adam for GPT-1."""

from typing import NamedTuple

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
        stacked = "layers" in path_string(path).split("/")
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
    """Global-norm clipping, then Adam with decoupled decay.

    Args:
      name: `adamw` (Loshchilov & Hutter 2019) or `openai_adam` (see there).
      clip_norm: the largest global norm of the gradients; 0 switches clipping off.
      mu_dtype: dtype of the first moment; the parameters' by default.

    Raises:
      UserError: for an unknown name or dtype.
    """
    if mu_dtype not in (None, "float32", "bfloat16"):
        raise UserError(f"optimizer.mu_dtype={mu_dtype!r}: expected float32 or bfloat16.")
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
    match name:
        case "adamw":
            return optax.chain(
                clip,
                optax.scale_by_adam(beta1, beta2, epsilon, mu_dtype=None if mu_dtype is None else jnp.dtype(mu_dtype)),
                optax.add_decayed_weights(weight_decay, mask=decay_mask),
                optax.scale_by_learning_rate(schedule),
            )
        case "openai_adam":
            if mu_dtype is not None:
                raise UserError(
                    f"optimizer.mu_dtype={mu_dtype!r}: openai_adam keeps its moments in the parameters' dtype."
                )
            return optax.chain(
                clip,
                openai_adam(schedule, beta1=beta1, beta2=beta2, epsilon=epsilon, weight_decay=weight_decay),
            )
    raise UserError(f"optimizer.name={name!r}: expected one of adamw, openai_adam.")


class OpenAIAdamState(NamedTuple):
    """Updates made so far, and both moments, which are trees like the parameters."""

    count: jax.Array
    mu: optax.Updates
    nu: optax.Updates


def openai_adam(
    schedule: optax.Schedule,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.01,
) -> optax.GradientTransformation:
    """The Adam that trained GPT-1 (openai/finetune-transformer-lm, opt.py), whose decay is not AdamW's.

    At update t, with c = √(1 - β2^t) / (1 - β1^t):

        p ← p - rate(t) · c · (m / (√v + ε) + decay · p)        decay only where `decay_mask` says so

    So the bias correction c scales the decay too (0.32 of it at the first update, 0.15 at the tenth, 0.8 at the
    thousandth), and ε is added to the uncorrected √v. Clip before it (`make_optimizer` does).
    """

    def init(params: optax.Params) -> OpenAIAdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return OpenAIAdamState(jnp.zeros((), jnp.int32), zeros, jax.tree.map(jnp.zeros_like, params))

    def update(gradients: optax.Updates, state: OpenAIAdamState, params: optax.Params):
        mu = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, state.mu, gradients)
        nu = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g**2, state.nu, gradients)
        t = state.count + 1
        rate = schedule(state.count) * jnp.sqrt(1 - beta2**t) / (1 - beta1**t)

        def step(m: jax.Array, v: jax.Array, p: jax.Array, decayed: bool) -> jax.Array:
            direction = m / (jnp.sqrt(v) + epsilon) + (weight_decay * p if decayed else 0)
            return (-rate * direction).astype(p.dtype)

        return jax.tree.map(step, mu, nu, params, decay_mask(params)), OpenAIAdamState(t, mu, nu)

    return optax.GradientTransformation(init, update)
