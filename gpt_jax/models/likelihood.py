"""How likely a decoder finds the next tokens. Shape suffixes as in layers.py; C: positions of one chunk of logits."""

import functools

import jax
import jax.numpy as jnp

from gpt_jax.models.config import ModelConfig
from gpt_jax.models.decoder import output_matrix, unembed


def cross_entropy(logits_BTV: jax.Array, targets_BT: jax.Array) -> jax.Array:
    """-log softmax(logits)[target] in nats, [B, T] float32 (or wider); the logits may be bfloat16."""
    wide_BTV = logits_BTV.astype(jnp.promote_types(logits_BTV.dtype, jnp.float32))
    target_logits_BT = jnp.sum(jnp.where(_one_hot(targets_BT, logits_BTV.shape[-1]), wide_BTV, 0), axis=-1)
    return jax.nn.logsumexp(wide_BTV, axis=-1) - target_logits_BT


def next_token_nats(params: dict, config: ModelConfig, hidden_BTD: jax.Array, targets_BT: jax.Array) -> jax.Array:
    """Nats of every target given the hidden states, [B, T] float32; for scoring (see `weighted_nats` for training)."""
    matrix_VD = output_matrix(params, config)
    chunks = _chunks(config.logits_chunk, hidden_BTD, targets_BT)
    parts = [_join(jax.lax.map(lambda xs: cross_entropy(unembed(xs[0], matrix_VD), xs[1]), chunk)) for chunk in chunks]
    return jnp.concatenate(parts, axis=1)


def weighted_nats(
    params: dict, config: ModelConfig, hidden_BTD: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array
) -> jax.Array:
    """Σ weight · nats of the targets: a float32 scalar, to be differentiated by `params` and `hidden_BTD` alone.

    With `config.logits_chunk` = C > 0 only [B, C, V] logits stand in memory at once. Since the weights are known, a
    chunk's gradients are made together with its loss, while its softmax is at hand: nothing of size V is kept for the
    backward pass or computed again.
    """
    return _weighted_nats(config.logits_chunk, hidden_BTD, output_matrix(params, config), targets_BT, weights_BT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _weighted_nats(chunk, hidden_BTD, matrix_VD, targets_BT, weights_BT):
    total = 0.0
    for hidden, targets, weights in _chunks(chunk, hidden_BTD, targets_BT, weights_BT):
        nats = jax.lax.map(
            lambda xs: xs[2] * cross_entropy(unembed(xs[0], matrix_VD), xs[1]), (hidden, targets, weights)
        )
        total += jnp.sum(nats)
    return total


def _weighted_nats_forward(chunk, hidden_BTD, matrix_VD, targets_BT, weights_BT):
    def add_chunk(totals, xs):
        total, matrix_gradient_VD = totals
        hidden_BCD, targets_BC, weights_BC = xs
        nats, hidden_gradient_BCD, more_VD = _nats_and_gradients(hidden_BCD, matrix_VD, targets_BC, weights_BC)
        return (total + nats, matrix_gradient_VD + more_VD), hidden_gradient_BCD

    wide = jnp.promote_types(hidden_BTD.dtype, jnp.float32)
    totals = (jnp.zeros((), wide), jnp.zeros(matrix_VD.shape, wide))
    hidden_gradients = []
    for xs in _chunks(chunk, hidden_BTD, targets_BT, weights_BT):
        if xs[0].shape[0] == 1:  # no loop around a single chunk: the compiler sees through it
            totals, gradient = add_chunk(totals, jax.tree.map(lambda x: x[0], xs))
            hidden_gradients.append(gradient)
        else:
            totals, gradients = jax.lax.scan(add_chunk, totals, xs)
            hidden_gradients.append(_join(gradients))
    total, matrix_gradient_VD = totals
    return total, (jnp.concatenate(hidden_gradients, axis=1), matrix_gradient_VD.astype(matrix_VD.dtype))


def _weighted_nats_backward(chunk, residuals, gradient):
    hidden_gradient_BTD, matrix_gradient_VD = residuals
    scale = gradient.astype(hidden_gradient_BTD.dtype), gradient.astype(matrix_gradient_VD.dtype)
    return scale[0] * hidden_gradient_BTD, scale[1] * matrix_gradient_VD, None, None


_weighted_nats.defvjp(_weighted_nats_forward, _weighted_nats_backward)


def _nats_and_gradients(hidden_BCD, matrix_VD, targets_BC, weights_BC):
    """Σ weight · nats of one chunk, and its gradients: weight · (softmax - one_hot) pulled back through the product."""
    wide = jnp.promote_types(hidden_BCD.dtype, jnp.float32)
    logits_BCV = unembed(hidden_BCD, matrix_VD).astype(wide)
    largest_BC1 = jnp.max(logits_BCV, axis=-1, keepdims=True)
    exp_BCV = jnp.exp(logits_BCV - largest_BC1)
    sum_BC1 = jnp.sum(exp_BCV, axis=-1, keepdims=True)
    is_target_BCV = _one_hot(targets_BC, matrix_VD.shape[0])
    target_logits_BC = jnp.sum(jnp.where(is_target_BCV, logits_BCV, 0), axis=-1)
    nats_BC = (largest_BC1 + jnp.log(sum_BC1))[..., 0] - target_logits_BC
    error_BCV = ((exp_BCV / sum_BC1 - is_target_BCV) * weights_BC[..., None]).astype(hidden_BCD.dtype)
    # Written once and read by both products; left to itself, XLA on CPUs writes a second, transposed copy of it.
    error_BCV = jax.lax.optimization_barrier(error_BCV)
    hidden_gradient_BCD = jnp.einsum("bcv,vd->bcd", error_BCV, matrix_VD)
    matrix_gradient_VD = jnp.einsum("bcv,bcd->vd", error_BCV, hidden_BCD, preferred_element_type=wide)
    return jnp.sum(weights_BC * nats_BC), hidden_gradient_BCD, matrix_gradient_VD


def _one_hot(targets_BT: jax.Array, vocab_size: int) -> jax.Array:
    # A comparison instead of a gather: its gradient is no scatter, and it stays local where V is divided over devices.
    return targets_BT[..., None] == jnp.arange(vocab_size)


def _chunks(chunk: int, *arrays_BT: jax.Array) -> list[tuple[jax.Array, ...]]:
    """Cuts [B, T, ...] into [chunks, B, C, ...]; where C does not divide T, a second, shorter chunk takes the rest."""
    time = arrays_BT[0].shape[1]
    chunk = chunk if 0 < chunk < time else time
    whole = time - time % chunk

    def cut(x: jax.Array, start: int, stop: int, size: int) -> jax.Array:
        return jnp.moveaxis(x[:, start:stop].reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)

    chunks = [tuple(cut(x, 0, whole, chunk) for x in arrays_BT)]
    if whole < time:
        chunks.append(tuple(cut(x, whole, time, time - whole) for x in arrays_BT))
    return chunks


def _join(x: jax.Array) -> jax.Array:
    """[chunks, B, C, ...] -> [B, chunks · C, ...]."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])
