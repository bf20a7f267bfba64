"""With a cache and without, the same numbers: for every member of the family, cut anywhere."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_jax.models import decoder, incremental
from gpt_jax.models.presets import model_config
from gpt_jax.parallel.mesh import make_mesh, single_device_mesh
from gpt_jax.parallel.rules import tree_shardings

T = 24
SIZES = dict(
    vocab_size=31, context_length=T, embed_dim=16, param_dtype="float64", compute_dtype="float64", init_std=0.25
)
HEADS = dict(num_layers=3, num_heads=4) | SIZES
FAMILY = {
    "gpt1": dict(HEADS),
    "gpt2-small": dict(HEADS, scan_layers=True),
    "gpt3-125M": dict(HEADS, attention_window=5),
    "llama3.2-1B": dict(HEADS, key_value_heads=2, head_dim=4, mlp_dim=24),
    "qwen2.5-0.5B": dict(HEADS, key_value_heads=2, head_dim=4, mlp_dim=24),
    "lstm": dict(SIZES, lstm_units=20, num_layers=2),
}


@functools.cache
def model(name):
    config = model_config(name, **FAMILY[name])
    with jax.enable_x64(True), jax.set_mesh(single_device_mesh()):
        return config, decoder.init(config, jax.random.key(0))


split_layers = jax.jit(incremental.split_layers, static_argnums=1)


@functools.cache
def whole(config):
    return jax.jit(lambda params, tokens: decoder.hidden_states(params, config, tokens))


@functools.cache
def advance(config):
    return jax.jit(lambda params, *inputs: incremental.advance(params, config, *inputs))


@pytest.mark.parametrize("name", FAMILY)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_hidden_states_with_a_cache_are_those_without(name, data):
    """Rows at places of their own, fed in pieces of any length, of which a part is no row's."""
    config, params = model(name)
    tokens_BT = np.random.default_rng(0).integers(0, 31, (3, T))
    with jax.enable_x64(True), jax.set_mesh(single_device_mesh()):
        expected = np.asarray(whole(config)(params, tokens_BT))
        split, step = split_layers(params, config), advance(config)
        cache, starts = incremental.empty_cache(config, 3, T), np.zeros(3, np.int32)
        while starts.min() < T:
            width = data.draw(st.sampled_from([1, 8]))
            lengths = np.array([data.draw(st.integers(0, min(width, T - start))) for start in starts], np.int32)
            lengths[starts.argmin()] = min(width, T - starts.min())  # so that it ends
            new = np.full((3, width), 7)
            for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
                new[row, :length] = tokens_BT[row, start : start + length]
            hidden, cache = step(split, new, cache, starts, lengths)
            for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
                np.testing.assert_allclose(
                    hidden[row, :length], expected[row, start : start + length], rtol=0, atol=1e-10
                )
            starts = starts + lengths


def test_a_banded_layer_keeps_its_band_alone():
    config, _ = model("gpt3-125M")
    with jax.enable_x64(True), jax.set_mesh(single_device_mesh()):
        slots = [layer.keys.shape[2] for layer in incremental.empty_cache(config, 2, T)]
    assert slots == [T, 5, T]


@pytest.mark.parametrize("name", ["gpt3-125M", "llama3.2-1B", "lstm"])
def test_rows_move_and_make_room_without_a_trace(name):
    """Fill a short cache, move its rows into a longer one, put one of another cache beside them, and go on."""
    config, params = model(name)
    tokens_BT = np.random.default_rng(1).integers(0, 31, (3, T))
    with jax.enable_x64(True), jax.set_mesh(single_device_mesh()):
        expected = np.asarray(whole(config)(params, tokens_BT))
        split, step = split_layers(params, config), advance(config)
        lengths = np.array([3, 8], np.int32)
        _, cache = step(split, tokens_BT[:2, :8], incremental.empty_cache(config, 2, 8), np.zeros(2, int), lengths)
        _, other = step(
            split, tokens_BT[2:, :16], incremental.empty_cache(config, 1, 16), np.zeros(1, int), np.array([11])
        )
        cache = incremental.resized(cache, config, np.array([1, 0, 0, 0]), T)
        cache = incremental.placed(cache, np.array([2]), other)
        order, starts = np.array([1, 0, 2, 0]), np.array([8, 3, 11, 0])
        new = np.stack([tokens_BT[row, start : start + 13] for row, start in zip(order, starts, strict=True)])
        hidden, _ = step(split, new, cache, starts, np.array([13, 13, 13, 0]))
    for place in range(3):
        start = starts[place]
        np.testing.assert_allclose(hidden[place], expected[order[place], start : start + 13], rtol=0, atol=1e-10)


def test_a_mesh_changes_nothing():
    config, params = model("gpt3-125M")
    tokens_BT = np.random.default_rng(2).integers(0, 31, (4, 8))
    found = []
    for mesh in (single_device_mesh(), make_mesh({"data": 2, "fsdp": 2, "tensor": 2})):
        with jax.enable_x64(True), jax.set_mesh(mesh):
            placed = jax.device_put(params, tree_shardings(params, mesh))
            split = split_layers(placed, config)
            cache = jax.jit(incremental.empty_cache, static_argnums=(0, 1, 2))(config, 4, T)
            hidden, cache = advance(config)(split, tokens_BT, cache, np.zeros(4, int), np.full(4, 8))
            found.append(np.asarray(hidden))
    np.testing.assert_allclose(*found, rtol=0, atol=1e-12)
    assert "tensor" in str(cache[0].keys.sharding.spec) and "fsdp" in str(cache[0].keys.sharding.spec)
