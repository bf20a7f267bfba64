"""How likely a decoder finds the next tokens. Shape suffixes as in layers.py; C: positions of one chunk of logits."""

import functools

import jax
import jax.numpy as jnp

from gpt_jax.models.config import ModelConfig
from gpt_jax.models.decoder import softmax_matrices, unembed
from gpt_jax.models.layers import row_sums


def cross_entropy(logits_BTV: jax.Array, targets_BT: jax.Array, *others_BTP: jax.Array) -> jax.Array:
    """-log softmax(logits)[target] in nats, [B, T] float32 (or wider); the logits may be bfloat16.

    Args:
      others_BTP: logits that compete in the softmax but are nobody's target (GPT-1's positions).
    """
    wide = jnp.promote_types(logits_BTV.dtype, jnp.float32)
    target_logits_BT = jnp.sum(jnp.where(_one_hot(targets_BT, logits_BTV.shape[-1]), logits_BTV.astype(wide), 0), -1)
    parts = [jax.nn.logsumexp(logits.astype(wide), axis=-1) for logits in (logits_BTV, *others_BTP)]
    return functools.reduce(jnp.logaddexp, parts) - target_logits_BT


def next_token_nats(params: dict, config: ModelConfig, hidden_BTD: jax.Array, targets_BT: jax.Array) -> jax.Array:
    """Nats of every target given the hidden states, [B, T] float32.

    Where the targets' weights are known beforehand, `weighted_nats` trains faster: differentiated, this makes each
    chunk's logits a second time, so that they need not be kept.
    """
    matrices = softmax_matrices(params, config)
    nats = jax.checkpoint(_nats, prevent_cse=False)
    chunks = _chunks(config.logits_chunk, hidden_BTD, targets_BT)
    parts = [_join(jax.lax.map(lambda xs: nats(xs[0], matrices, xs[1]), chunk)) for chunk in chunks]
    return jnp.concatenate(parts, axis=1)


def next_token_nats_and_hits(
    params: dict, config: ModelConfig, hidden_BTD: jax.Array, targets_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """As `next_token_nats`, and whether each target is the likeliest of all tokens there, bool [B, T]."""
    matrices = softmax_matrices(params, config)

    def both(hidden_BCD: jax.Array, targets_BC: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits, *others = [unembed(hidden_BCD, matrix) for matrix in matrices]
        return cross_entropy(logits, targets_BC, *others), jnp.argmax(logits, axis=-1) == targets_BC

    chunks = _chunks(config.logits_chunk, hidden_BTD, targets_BT)
    nats, hits = zip(*(map(_join, jax.lax.map(lambda xs: both(*xs), chunk)) for chunk in chunks), strict=True)
    return jnp.concatenate(nats, axis=1), jnp.concatenate(hits, axis=1)


def _nats(hidden_BCD: jax.Array, matrices: tuple[jax.Array, ...], targets_BC: jax.Array) -> jax.Array:
    logits, *others = [unembed(hidden_BCD, matrix) for matrix in matrices]
    return cross_entropy(logits, targets_BC, *others)


def weighted_nats(
    params: dict, config: ModelConfig, hidden_BTD: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array
) -> jax.Array:
    """Σ weight · nats of the targets: a float32 scalar, to be differentiated by `params` and `hidden_BTD` alone.

    With `config.logits_chunk` = C > 0 only [B, C, V] logits stand in memory at once. Since the weights are known, a
    chunk's gradients are made together with its loss, while its softmax is at hand: nothing of size V is kept for the
    backward pass or computed again.
    """
    return _weighted_nats(config.logits_chunk, hidden_BTD, softmax_matrices(params, config), targets_BT, weights_BT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _weighted_nats(chunk, hidden_BTD, matrices, targets_BT, weights_BT):
    total = 0.0
    for xs in _chunks(chunk, hidden_BTD, targets_BT, weights_BT):
        total += jnp.sum(jax.lax.map(lambda xs: xs[2] * _nats(xs[0], matrices, xs[1]), xs))
    return total


def _weighted_nats_forward(chunk, hidden_BTD, matrices, targets_BT, weights_BT):
    def add_chunk(totals, xs):
        total, matrix_gradients = totals
        hidden_BCD, targets_BC, weights_BC = xs
        nats, hidden_gradient_BCD, more = _nats_and_gradients(hidden_BCD, matrices, targets_BC, weights_BC, summed)
        return (total + nats, jax.tree.map(jnp.add, matrix_gradients, more)), hidden_gradient_BCD

    wide, chunks = jnp.promote_types(hidden_BTD.dtype, jnp.float32), _chunks(chunk, hidden_BTD, targets_BT, weights_BT)
    # The gradients of a single chunk are rounded once, before they travel between devices or after.
    summed = hidden_BTD.dtype if len(chunks) == len(chunks[0][0]) == 1 else wide
    totals = (jnp.zeros((), wide), tuple(jnp.zeros(matrix.shape, summed) for matrix in matrices))
    hidden_gradients = []
    for xs in chunks:
        if xs[0].shape[0] == 1:  # no loop around a single chunk: the compiler sees through it
            totals, gradient = add_chunk(totals, jax.tree.map(lambda x: x[0], xs))
            hidden_gradients.append(gradient)
        else:
            totals, gradients = jax.lax.scan(add_chunk, totals, xs)
            hidden_gradients.append(_join(gradients))
    total, matrix_gradients = totals
    matrix_gradients = tuple(g.astype(m.dtype) for g, m in zip(matrix_gradients, matrices, strict=True))
    return total, (jnp.concatenate(hidden_gradients, axis=1), matrix_gradients)


def _weighted_nats_backward(chunk, residuals, gradient):
    hidden_gradient_BTD, matrix_gradients = jax.tree.map(lambda x: gradient.astype(x.dtype) * x, residuals)
    return hidden_gradient_BTD, matrix_gradients, None, None


_weighted_nats.defvjp(_weighted_nats_forward, _weighted_nats_backward)


def _nats_and_gradients(hidden_BCD, matrices, targets_BC, weights_BC, matrix_dtype):
    """Σ weight · nats of one chunk, and its gradients: weight · (softmax - one_hot) pulled back through the product.

    Those of the matrices come in `matrix_dtype`. The first of `matrices` holds the targets' rows; the softmax goes over
    the rows of all.
    """
    wide = jnp.promote_types(hidden_BCD.dtype, jnp.float32)
    logits = [unembed(hidden_BCD, matrix).astype(wide) for matrix in matrices]
    largest_BC1 = functools.reduce(jnp.maximum, [jnp.max(x, axis=-1, keepdims=True) for x in logits])
    sum_BC1 = sum(row_sums(jnp.exp(x - largest_BC1).astype(hidden_BCD.dtype)) for x in logits)
    log_sum_BC1 = largest_BC1 + jnp.log(sum_BC1)
    # The targets' logits from their rows, rounded as the others are: picking them out of the logits is a pass over all.
    rows_BCD = matrices[0][targets_BC].astype(wide)
    target_logits_BC = jnp.sum(hidden_BCD.astype(wide) * rows_BCD, axis=-1).astype(hidden_BCD.dtype).astype(wide)
    nats_BC = log_sum_BC1[..., 0] - target_logits_BC
    is_target_BCV = _one_hot(targets_BC, matrices[0].shape[0])
    hidden_gradient_BCD, matrix_gradients = 0.0, []
    for matrix, x, is_target in zip(matrices, logits, (is_target_BCV, 0, 0), strict=False):
        error = ((jnp.exp(x - log_sum_BC1) - is_target) * weights_BC[..., None]).astype(hidden_BCD.dtype)
        # On CPUs written once and read by both products: left to itself, XLA writes a second, transposed copy of it
        # there. On TPUs it costs nothing to make it twice, inside the products.
        error = jax.lax.platform_dependent(error, cpu=jax.lax.optimization_barrier, default=lambda error: error)
        hidden_gradient_BCD += jnp.einsum("bcv,vd->bcd", error, matrix)
        matrix_gradient = jnp.einsum("bcv,bcd->vd", error, hidden_BCD, preferred_element_type=matrix_dtype)
        matrix_gradients.append(matrix_gradient)
    # What follows it in the backward pass is not to be fused into the product, which gets slower by half.
    hidden_gradient_BCD = jax.lax.optimization_barrier(hidden_gradient_BCD)
    return jnp.sum(weights_BC * nats_BC), hidden_gradient_BCD, tuple(matrix_gradients)


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
