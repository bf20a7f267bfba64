"""Nats of targets: against plain NumPy in float64, whole and in chunks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.models import decoder
from gpt_jax.models.config import ModelConfig
from gpt_jax.models.likelihood import cross_entropy, next_token_nats

CONFIG = ModelConfig(vocab_size=29, context_length=10, num_layers=1, num_heads=2, embed_dim=8)


def test_cross_entropy_is_minus_log_softmax():
    logits = np.random.default_rng(0).normal(size=(2, 5, 29)) * 5
    targets = np.random.default_rng(1).integers(0, 29, (2, 5))
    expected = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(cross_entropy(jnp.asarray(logits, jnp.float32), targets), expected, rtol=2e-6, atol=2e-6)
    assert cross_entropy(jnp.asarray(logits, jnp.bfloat16), targets).dtype == jnp.float32


@pytest.mark.parametrize("chunk", [1, 3, 5, 10, 11])
def test_chunks_change_neither_loss_nor_gradient(chunk, one_device):
    params = decoder.init(CONFIG, jax.random.key(0))
    hidden = jax.random.normal(jax.random.key(1), (2, 10, 8))
    targets = jax.random.randint(jax.random.key(2), (2, 10), 0, 29)
    weights = jax.random.uniform(jax.random.key(3), (2, 10))

    def loss(params, hidden, config):
        return jnp.sum(next_token_nats(params, config, hidden, targets) * weights)

    whole = jax.value_and_grad(loss, (0, 1))(params, hidden, CONFIG)
    chunked = jax.value_and_grad(loss, (0, 1))(params, hidden, dataclasses.replace(CONFIG, logits_chunk=chunk))
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(chunked), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_whole_logits_never_stand_in_memory_when_chunked(one_device):
    """No array of B·T·V elements appears in the compiled gradient."""
    config = dataclasses.replace(CONFIG, vocab_size=4096, context_length=64, logits_chunk=8)
    params = jax.eval_shape(lambda: decoder.init(config, jax.random.key(0)))
    hidden, targets = jax.ShapeDtypeStruct((4, 64, 8), jnp.float32), jax.ShapeDtypeStruct((4, 64), jnp.int32)

    def temporary_bytes(config):
        gradient = jax.grad(lambda p, h, t: jnp.sum(next_token_nats(p, config, h, t)))
        return jax.jit(gradient).lower(params, hidden, targets).compile().memory_analysis().temp_size_in_bytes

    whole = 4 * 64 * 4096 * 4
    assert temporary_bytes(config) < whole / 2
    assert temporary_bytes(dataclasses.replace(config, logits_chunk=0)) >= whole
