"""The FLOP formula against the published figure and against XLA's own count."""

import jax
import jax.numpy as jnp

from gpt_jax.models import decoder
from gpt_jax.models.config import ModelConfig
from gpt_jax.models.flops import training_flops_per_token
from gpt_jax.models.presets import model_config


def test_gpt2_small_costs_the_flops_that_nanogpt_states():
    # 6·N + 12·L·H·Q·T; nanoGPT's N is 124,337,664 less positions and includes gains: 855.2 MFLOP a token
    assert abs(training_flops_per_token(model_config("gpt2-small"), 1024) / 855.2e6 - 1) < 0.005


def test_a_banded_layer_costs_its_window():
    dense, banded = (model_config("gpt3-125M", attention_pattern=pattern) for pattern in ("dense", "alternating"))
    saved = training_flops_per_token(dense, 2048) - training_flops_per_token(banded, 2048)
    assert saved == 12 * 6 * 768 * (2048 - 256)  # 6 of the 12 layers, width 768, a window of 256 keys


def test_formula_agrees_with_the_compiler(one_device):
    config = ModelConfig(vocab_size=512, context_length=64, num_layers=2, num_heads=4, embed_dim=128)
    params = jax.eval_shape(lambda: decoder.init(config, jax.random.key(0)))
    ids = jax.ShapeDtypeStruct((2, 64), jnp.int32)

    def loss(params, ids):
        return jnp.sum(decoder.Decoder(config).apply({"params": params}, ids) ** 2)

    counted = jax.jit(jax.grad(loss)).lower(params, ids).compile().cost_analysis()["flops"]
    assert 0.95 < training_flops_per_token(config, 64) * 2 * 64 / counted < 1.02  # the rest is elementwise
