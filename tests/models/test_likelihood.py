"""Nats of targets: against plain NumPy in float64, whole and in chunks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.models import decoder
from gpt_jax.models.config import ModelConfig
from gpt_jax.models.likelihood import cross_entropy, next_token_nats, weighted_nats

CONFIG = ModelConfig(vocab_size=29, context_length=10, num_layers=1, num_heads=2, embed_dim=8)


def test_cross_entropy_is_minus_log_softmax():
    logits = np.random.default_rng(0).normal(size=(2, 5, 29)) * 5
    targets = np.random.default_rng(1).integers(0, 29, (2, 5))
    expected = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(cross_entropy(jnp.asarray(logits, jnp.float32), targets), expected, rtol=2e-6, atol=2e-6)
    assert cross_entropy(jnp.asarray(logits, jnp.bfloat16), targets).dtype == jnp.float32


def operands(dtype="float32"):
    """Parameters, hidden states, targets and weights (some 0), of large spread."""
    config = dataclasses.replace(CONFIG, compute_dtype=dtype, init_std=0.7)
    params = decoder.init(config, jax.random.key(0))
    hidden = jax.random.normal(jax.random.key(1), (2, 10, 8)).astype(dtype)
    targets = jax.random.randint(jax.random.key(2), (2, 10), 0, 29)
    weights = jax.nn.relu(jax.random.normal(jax.random.key(3), (2, 10)))
    return config, params, hidden, targets, weights


def loss_and_gradients(function, params, hidden):
    """Of 3 · the loss: a cotangent that is not 1 must reach the gradients."""
    return jax.value_and_grad(lambda params, hidden: 3 * function(params, hidden), (0, 1))(params, hidden)


def assert_close(one, other, **tolerance):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float64), np.asarray(b, np.float64), **tolerance)


@pytest.mark.parametrize("chunk", [0, 1, 3, 5, 10, 11])
@pytest.mark.parametrize("output", [dict(), dict(tied_output=False), dict(positions_in_softmax=True)])
def test_the_written_gradients_are_those_of_autodiff(chunk, output, one_device):
    config, _, hidden, targets, weights = operands()
    config = dataclasses.replace(config, position_init_std=0.7, **output)
    params = decoder.init(config, jax.random.key(0))

    def by_autodiff(params, hidden):
        matrix = jnp.concatenate(decoder.softmax_matrices(params, config))
        logits = decoder.unembed(hidden, matrix)
        log_probabilities = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0]
        return -jnp.sum(weights * log_probabilities)

    def written(params, hidden):
        chunked = dataclasses.replace(config, logits_chunk=chunk)
        return weighted_nats(params, chunked, hidden, targets, weights)

    expected = loss_and_gradients(by_autodiff, params, hidden)
    assert_close(loss_and_gradients(written, params, hidden), expected, rtol=2e-5, atol=2e-5)
    assert_close(3 * written(params, hidden), expected[0], rtol=1e-6)  # without a gradient it is another program


def test_bfloat16_gradients_stay_near_float32(one_device):
    config, params, hidden, targets, weights = operands("bfloat16")
    exact = dataclasses.replace(config, compute_dtype="float32")
    half = loss_and_gradients(lambda p, h: weighted_nats(p, config, h, targets, weights), params, hidden)
    full = loss_and_gradients(
        lambda p, h: weighted_nats(p, exact, h, targets, weights), params, hidden.astype("float32")
    )
    assert_close(half, full, rtol=0.05, atol=0.15)
    assert half[1][0]["embedding"]["tokens"].dtype == jnp.float32 and half[1][1].dtype == jnp.bfloat16


@pytest.mark.parametrize("chunk", [1, 3, 10, 11])
def test_chunks_do_not_change_the_scores(chunk, one_device):
    config, params, hidden, targets, weights = operands()
    whole = next_token_nats(params, config, hidden, targets)
    chunked = next_token_nats(params, dataclasses.replace(config, logits_chunk=chunk), hidden, targets)
    np.testing.assert_allclose(chunked, whole, rtol=1e-5)
    np.testing.assert_allclose(
        jnp.sum(whole * weights), weighted_nats(params, config, hidden, targets, weights), rtol=1e-5
    )


def test_whole_logits_never_stand_in_memory_when_chunked(one_device):
    """The compiled gradient needs less than half the memory of [B, T, V] logits."""
    config = dataclasses.replace(CONFIG, vocab_size=4096, context_length=64, logits_chunk=8)
    params = jax.eval_shape(lambda: decoder.init(config, jax.random.key(0)))
    hidden, targets = jax.ShapeDtypeStruct((4, 64, 8), jnp.float32), jax.ShapeDtypeStruct((4, 64), jnp.int32)

    def temporary_bytes(config):
        gradient = jax.grad(lambda p, h, t: weighted_nats(p, config, h, t, jnp.ones((4, 64))), (0, 1))
        return jax.jit(gradient).lower(params, hidden, targets).compile().memory_analysis().temp_size_in_bytes

    whole = 4 * 64 * 4096 * 4
    assert temporary_bytes(config) < whole / 2
    assert temporary_bytes(dataclasses.replace(config, logits_chunk=0)) >= whole
