"""Low-rank adapters: nothing at first, exactly W + (alpha / r) A B later, and the only thing that learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.errors import UserError
from gpt_jax.models import decoder
from gpt_jax.models.adapters import adapter_specs, merge_adapters
from gpt_jax.models.config import ModelConfig

CONFIG = ModelConfig(vocab_size=40, context_length=16, num_layers=3, num_heads=4, embed_dim=16, gated_mlp=True)
EVERY_KERNEL = ("query", "key", "value", "output", "up", "gate", "down")
TOKENS = jnp.arange(12).reshape(1, 12)


def adapters_of(targets: tuple[str, ...], rank: int = 2) -> dict:
    return decoder.init_parameters(adapter_specs(CONFIG, rank, targets), jax.random.key(1), jnp.float32)


@pytest.fixture
def params(one_device) -> dict:
    return decoder.init(CONFIG, jax.random.key(0))


def test_fresh_adapters_change_nothing(params):
    merged = merge_adapters(params, adapters_of(EVERY_KERNEL), alpha=16.0)
    jax.tree.map(np.testing.assert_array_equal, merged, params)


def test_a_merged_kernel_is_the_kernel_plus_the_scaled_product(params):
    adapters = jax.tree.map(lambda x: x + 0.1, adapters_of(("up",), rank=4))
    merged = merge_adapters(params, adapters, alpha=8.0)
    own = adapters["layers"]["mlp"]["up"]
    for layer in range(CONFIG.num_layers):
        expected = params["layers"]["mlp"]["up"]["kernel"][layer] + 2.0 * own["lora_a"][layer] @ own["lora_b"][layer]
        np.testing.assert_allclose(merged["layers"]["mlp"]["up"]["kernel"][layer], expected, atol=1e-6)
    np.testing.assert_array_equal(merged["layers"]["mlp"]["down"]["kernel"], params["layers"]["mlp"]["down"]["kernel"])


def test_gradients_reach_the_adapters_and_not_the_decoder(params):
    def loss(params: dict, adapters: dict) -> jax.Array:
        merged = merge_adapters(params, adapters, alpha=16.0)
        return jnp.sum(decoder.hidden_states(merged, CONFIG, TOKENS) ** 3)

    adapters = jax.tree.map(lambda x: x + 0.1, adapters_of(("query", "value")))
    of_decoder, of_adapters = jax.grad(loss, argnums=(0, 1))(params, adapters)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(of_decoder["layers"]))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(of_adapters))


def test_the_number_of_parameters_is_that_of_the_paper():
    """Hu et al. 2021, table 2: rank 8 for query and value of 24 layers of 1024 are 2 · 2 · 24 · 8 · 1024."""
    large = ModelConfig(vocab_size=8, context_length=8, num_layers=24, num_heads=16, embed_dim=1024)
    specs = jax.tree.leaves(adapter_specs(large, 8, ("query", "value")), is_leaf=lambda x: hasattr(x, "shape"))
    assert sum(int(np.prod(spec.shape)) for spec in specs) == 786_432


@pytest.mark.parametrize(
    ("targets", "words"), [(("query", "vlue"), ["'vlue'", "value"]), ((), ["Expected some of", "down, gate, key"])]
)
def test_a_kernel_that_is_not_there_is_named(targets, words):
    with pytest.raises(UserError) as error:
        adapter_specs(CONFIG, 2, targets)
    assert all(word in str(error.value) for word in words)
