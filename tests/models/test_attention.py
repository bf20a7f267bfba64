"""Attention kernels against the dense one under the mask that says who sees whom."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.models import attention

# Compiled whole: op by op each would be compiled on its own.
banded_attention = functools.partial(jax.jit, static_argnames=("window", "dropout_rate"))(attention.banded_attention)
dot_product_attention = functools.partial(jax.jit, static_argnames=("block",))(attention.dot_product_attention)


def operands(time: int, heads: int = 4, kv_heads: int = 2, width: int = 8, batch: int = 2):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = [(batch, time, heads, width), (batch, time, kv_heads, width), (batch, time, kv_heads, width)]
    spreads = (2.0, 2.0, 0.5)  # scores far from uniform, outputs of size 1
    return [c * jax.random.normal(key, shape) for c, key, shape in zip(spreads, keys, shapes, strict=True)]


@functools.partial(jax.jit, static_argnums=3)
def dense_under_mask(q, k, v, window: int) -> jax.Array:
    """All T x T scores, then the mask: the definition."""
    heads, time = q.shape[2], q.shape[1]
    k, v = (jnp.repeat(x, heads // x.shape[2], axis=2) for x in (k, v))
    scores = jnp.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(q.shape[-1])
    t, s = np.arange(time)[:, None], np.arange(time)
    weights = jax.nn.softmax(jnp.where((s <= t) & (s > t - window), scores, -jnp.inf), axis=-1)
    return jnp.einsum("bnts,bsnh->btnh", weights, v)


@pytest.mark.parametrize(
    ("time", "window"), [(16, 4), (17, 4), (19, 5), (12, 1), (12, 11), (12, 12), (12, 40), (1, 3), (33, 7)]
)
def test_banded_attention_is_the_dense_one_under_the_banded_mask(time, window):
    q, k, v = operands(time)
    expected = dense_under_mask(q, k, v, window)
    np.testing.assert_allclose(banded_attention(q, k, v, window=window), expected, atol=1e-6, rtol=0)


def test_its_gradients_are_the_dense_ones():
    operands_, weight = operands(19), jax.random.normal(jax.random.key(9), (2, 19, 4, 8))
    banded = jax.grad(lambda qkv: jnp.sum(weight * banded_attention(*qkv, window=5)))(operands_)
    dense = jax.grad(lambda qkv: jnp.sum(weight * dense_under_mask(*qkv, 5)))(operands_)
    for one, other in zip(banded, dense, strict=True):
        np.testing.assert_allclose(one, other, atol=5e-6, rtol=0)


@pytest.mark.parametrize("block", [0, 1, 4, 5, 16, 99])
def test_dense_attention_in_blocks_is_the_definition(block):
    q, k, v = operands(16)
    expected = dense_under_mask(q, k, v, 16)
    np.testing.assert_allclose(dot_product_attention(q, k, v, block=block), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("width", [8, 64, 128])
@pytest.mark.parametrize("block", [0, 5])
def test_bfloat16_costs_digits_and_nothing_else(width, block):
    exact = [x.astype(jnp.bfloat16).astype(jnp.float32) for x in operands(16, width=width)]
    rounded = [x.astype(jnp.bfloat16) for x in exact]
    weight = jax.random.normal(jax.random.key(9), (2, 16, 4, width))

    def outputs_and_gradients(attend, operands_):
        out, pull_back = jax.vjp(lambda q, k, v: attend(q, k, v), *operands_)
        return out, *pull_back(weight.astype(out.dtype))

    expected = outputs_and_gradients(functools.partial(dense_under_mask, window=16), exact)
    found = outputs_and_gradients(functools.partial(dot_product_attention, block=block), rounded)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == jnp.bfloat16
        np.testing.assert_allclose(one.astype(jnp.float32), other, atol=0.02 * np.abs(other).max(), rtol=0)


def cost(attention, time: int) -> dict[str, float]:
    """FLOPs and temporary bytes of the compiled program, as XLA counts them."""
    shapes = [jax.ShapeDtypeStruct((1, time, 2, 8), jnp.float32)] * 3
    compiled = jax.jit(attention).lower(*shapes).compile()
    return {"flops": compiled.cost_analysis()["flops"], "bytes": compiled.memory_analysis().temp_size_in_bytes}


def test_the_cost_of_a_banded_layer_grows_with_t_not_with_t_squared():
    short, long = (cost(lambda q, k, v: banded_attention(q, k, v, window=32), time) for time in (256, 2048))
    assert long["flops"] < 8.5 * short["flops"] and long["bytes"] < 8.5 * short["bytes"]  # T grew 8 times
    short, long = (cost(dot_product_attention, time) for time in (256, 2048))
    assert long["flops"] > 50 * short["flops"]


def test_dropout_falls_on_the_weights_of_the_band():
    q, k, v = operands(16)
    ones = jnp.ones_like(v)  # the weights' sums
    sums = banded_attention(q, k, ones, window=4, dropout_rate=0.5, key=jax.random.key(0))
    assert 0.8 < float(sums.mean()) < 1.2 and float(sums.std()) > 0.2
    again = banded_attention(q, k, ones, window=4, dropout_rate=0.5, key=jax.random.key(0))
    np.testing.assert_array_equal(sums, again)
