"""The decoder: its size, its causality, its places of dropout, its initializers, its two ways of running the layers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.errors import UserError
from gpt_jax.models import decoder
from gpt_jax.models.config import ModelConfig
from gpt_jax.models.likelihood import cross_entropy
from gpt_jax.models.presets import PRESETS, model_config

TINY = ModelConfig(vocab_size=31, context_length=12, num_layers=3, num_heads=4, embed_dim=16)
GPT1_LIKE = dataclasses.replace(TINY, norm_position="post", final_norm=False)
LLAMA_LIKE = dataclasses.replace(
    TINY, norm="rmsnorm", gated_mlp=True, activation="silu", positions="rotary", biases="none", key_value_heads=2,
    tied_output=False, mlp_dim=40,
)  # fmt: skip
MEMBERS = {"gpt2": TINY, "gpt1": GPT1_LIKE, "llama": LLAMA_LIKE}


def spread_parameters(config: ModelConfig, seed: int = 0, std: float = 0.25) -> dict:
    """Parameters of large spread: at 0.02 attention is nearly uniform and mistakes hide."""
    params = decoder.init(config, jax.random.key(seed))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    return tree.unflatten([x + std * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)])


def tokens(config: ModelConfig, batch: int = 2, time: int = 12, seed: int = 2) -> jax.Array:
    return jax.random.randint(jax.random.key(seed), (batch, time), 0, config.vocab_size)


def apply(params, config, ids, key=None):
    return jax.jit(decoder.Decoder(config).apply)({"params": params}, ids, key)


# As the papers and model cards print them, not as this code counts them.
PUBLISHED_COUNTS = {
    "gpt1": 116_534_784,
    "gpt1-released": 116_534_784,
    "gpt2-small": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "llama1-7B": 6_738_415_616,
    "llama1-13B": 13_015_864_320,
    "llama1-33B": 32_528_943_616,
    "llama1-65B": 65_285_660_672,
    "llama2-7B": 6_738_415_616,
    "llama2-13B": 13_015_864_320,
    "llama2-70B": 68_976_648_192,
    "llama3-8B": 8_030_261_248,
    "llama3-70B": 70_553_706_496,
    "llama3.1-8B": 8_030_261_248,
    "llama3.1-70B": 70_553_706_496,
    "llama3.1-405B": 405_853_388_800,
    "llama3.2-1B": 1_235_814_400,
    "llama3.2-3B": 3_212_749_824,
    "qwen2-0.5B": 494_032_768,
    "qwen2-1.5B": 1_543_714_304,
    "qwen2-7B": 7_615_616_512,
    "qwen2-72B": 72_706_203_648,
    "qwen2.5-0.5B": 494_032_768,
    "qwen2.5-1.5B": 1_543_714_304,
    "qwen2.5-3B": 3_085_938_688,
    "qwen2.5-7B": 7_615_616_512,
    "qwen2.5-14B": 14_770_033_664,
    "qwen2.5-32B": 32_763_876_352,
    "qwen2.5-72B": 72_706_203_648,
    "books": 1_311_872,  # this project's own
    "laptop": 1_311_872,
    "laptop-lstm": 1_303_104,
    "lstm": 55_738_368,
}
# Brown et al. 2020 print their counts in millions and billions only.
GPT3_COUNTS = {
    "125M": 125e6,
    "350M": 350e6,
    "760M": 760e6,
    "1.3B": 1.3e9,
    "2.7B": 2.7e9,
    "6.7B": 6.7e9,
    "13B": 13e9,
    "175B": 175e9,
}


def test_every_preset_has_a_published_count():
    assert set(PUBLISHED_COUNTS) | {f"gpt3-{size}" for size in GPT3_COUNTS} == set(PRESETS)


@pytest.mark.parametrize("preset", PUBLISHED_COUNTS)
def test_parameter_counts_are_the_published_ones(preset, one_device):
    config = model_config(preset)
    assert decoder.parameter_count(config) == PUBLISHED_COUNTS[preset]
    shapes = jax.eval_shape(lambda: decoder.init(config, jax.random.key(0)))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == PUBLISHED_COUNTS[preset]


@pytest.mark.parametrize("size", GPT3_COUNTS)
def test_gpt3_sizes_are_those_of_table_2_1_as_far_as_it_prints_them(size):
    assert decoder.parameter_count(model_config(f"gpt3-{size}")) == pytest.approx(GPT3_COUNTS[size], rel=0.02)


@pytest.mark.parametrize("config", MEMBERS.values(), ids=MEMBERS)
def test_no_position_sees_a_later_one(config, one_device):
    """d(hidden states at t) / d(embedded input at s) is zero exactly where s > t, and nowhere else."""
    params = spread_parameters(config)
    time = config.context_length

    def outputs_by_time(inputs_TD):
        # tokens 0..T-1 stand for themselves: the embedding matrix is the input that we differentiate by
        embedding = params["embedding"] | {"tokens": params["embedding"]["tokens"].at[:time].set(inputs_TD)}
        hidden = decoder.hidden_states(params | {"embedding": embedding}, config, jnp.arange(time)[None])
        return jnp.sum(hidden[0] * jnp.arange(1, config.embed_dim + 1), axis=-1)

    jacobian_TSD = jax.jacobian(outputs_by_time)(params["embedding"]["tokens"][:time])
    influence_TS = np.abs(jacobian_TSD).max(axis=-1)
    earlier = np.tril(np.ones((time, time), bool))
    assert (influence_TS[~earlier] == 0).all()
    assert (influence_TS[earlier] > 0).all()


@pytest.mark.parametrize("config", MEMBERS.values(), ids=MEMBERS)
def test_scanned_and_unrolled_layers_agree(config, one_device):
    params, ids = spread_parameters(config), tokens(config)
    scanned = dataclasses.replace(config, scan_layers=True, remat="block")
    key = jax.random.key(5)
    for dropout in (0.0, 0.3):
        one, other = (dataclasses.replace(c, dropout=dropout) for c in (config, scanned))
        # scores of magnitude ~100: a float32 sum in another order moves them by this much
        np.testing.assert_allclose(apply(params, one, ids, key), apply(params, other, ids, key), rtol=1e-4, atol=5e-4)


@pytest.mark.parametrize(("remat", "kept"), [("none", 3), ("dots", 2), ("block", 0)])
def test_remat_says_what_is_kept_for_the_backward_pass_and_changes_no_gradient(remat, kept, one_device):
    """The MLP's inner products, attention's output, and, with `none` alone, the T x T exponentials."""
    config = dataclasses.replace(TINY, num_layers=1, num_heads=2, head_dim=5, mlp_dim=21, remat=remat)
    params, ids = spread_parameters(config), tokens(config)

    def output(params: dict, remat: str) -> jax.Array:
        return jnp.sum(jnp.square(decoder.hidden_states(params, dataclasses.replace(config, remat=remat), ids)))

    _, pull_back = jax.vjp(functools.partial(output, remat=remat), params)
    batch, time = ids.shape
    shapes = {leaf.shape for leaf in jax.tree.leaves(pull_back)}
    candidates = [(batch, time, 21), (batch, 2, time, 5), (batch, 2, time, time)]
    assert [shape in shapes for shape in candidates] == [index < kept for index in range(3)]
    expected = jax.grad(output)(params, "none")
    for one, other in zip(jax.tree.leaves(jax.grad(output)(params, remat)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5 * np.abs(other).max(), rtol=0)


@pytest.mark.parametrize("place", ["embedding", "attention", "residual"])
def test_each_place_of_dropout_acts_alone(place, one_device):
    config = dataclasses.replace(TINY, **{f"{place}_dropout": 0.5})
    params, ids = spread_parameters(TINY), tokens(TINY)
    plain = apply(params, TINY, ids)
    assert not np.allclose(apply(params, config, ids, jax.random.key(0)), plain, atol=0.1)
    np.testing.assert_array_equal(apply(params, config, ids), plain)  # no key: off
    np.testing.assert_array_equal(
        apply(params, config, ids, jax.random.key(3)), apply(params, config, ids, jax.random.key(3))
    )
    everywhere = dataclasses.replace(
        TINY, dropout=0.5, **{f"{p}_dropout": 0.0 for p in ("embedding", "attention", "residual")}
    )
    np.testing.assert_array_equal(
        apply(params, everywhere, ids, jax.random.key(0)), plain
    )  # each place has its own say


def test_embedding_dropout_drops_the_sum_of_token_and_position(one_device):
    config = dataclasses.replace(TINY, embedding_dropout=0.5)
    params, ids = spread_parameters(TINY), tokens(TINY)
    plain, dropped = decoder.embed(params, TINY, ids), decoder.embed(params, config, ids, jax.random.key(1))
    kept = np.asarray(dropped) != 0
    np.testing.assert_allclose(np.asarray(dropped)[kept], 2 * np.asarray(plain)[kept], rtol=1e-6)
    assert 0.4 < kept.mean() < 0.6


def test_no_two_layers_share_a_dropout_mask(one_device, monkeypatch):
    config = dataclasses.replace(TINY, dropout=0.5)
    params, keys, real_block = spread_parameters(config), [], decoder.block

    def spy(x_BTD, params, config, key, window):
        keys.append(tuple(np.asarray(jax.random.key_data(key))))
        return real_block(x_BTD, params, config, key, window=window)

    monkeypatch.setattr(decoder, "block", spy)
    decoder.hidden_states(params, config, tokens(config), jax.random.key(0))
    assert len(set(keys)) == config.num_layers


def test_gpt1_is_post_norm_with_no_norm_at_the_end(one_device):
    config = model_config("gpt1", num_layers=2, embed_dim=48, vocab_size=50, context_length=8)
    params = decoder.init(config, jax.random.key(0))
    assert "final_norm" not in params
    hidden = decoder.hidden_states(params, config, tokens(config, time=8))
    # the last thing that happens is a LayerNorm with gain 1 and bias 0
    np.testing.assert_allclose(hidden.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(hidden.std(-1), 1, atol=1e-2)


def test_initializers_are_the_published_ones(one_device):
    gpt1 = decoder.init(model_config("gpt1", num_layers=2), jax.random.key(0))
    for path in (("embedding", "tokens"), ("embedding", "positions"), ("layers", "mlp", "down", "kernel")):
        leaf = gpt1
        for name in path:
            leaf = leaf[name]
        assert abs(float(leaf.std()) / 0.02 - 1) < 0.01, path
    gpt2 = decoder.init(model_config("gpt2-small", num_layers=2), jax.random.key(0))
    assert abs(float(gpt2["embedding"]["positions"].std()) / 0.01 - 1) < 0.01
    assert abs(float(gpt2["layers"]["mlp"]["down"]["kernel"].std()) / (0.02 / 2) - 1) < 0.01  # sqrt(2 * 2 layers)
    assert abs(float(gpt2["layers"]["mlp"]["up"]["kernel"].std()) / 0.02 - 1) < 0.01
    for params in (gpt1, gpt2):
        assert not np.any(params["layers"]["attention"]["query"]["bias"])
        assert np.all(np.asarray(params["layers"]["attention_norm"]["scale"]) == 1)


def test_loss_of_a_fresh_gpt1_is_that_of_its_logits_spread(one_device):
    """ln V + σ²/2 = 10.76 with σ = 0.02·√768; on the original's initialisation 10.72 and 0.555 were measured."""
    config = model_config("gpt1")
    ids = tokens(config, batch=1, time=256)
    scores = apply(jax.jit(lambda: decoder.init(config, jax.random.key(0)))(), config, ids)
    assert abs(float(scores.std()) - 0.555) < 0.01
    assert abs(float(cross_entropy(scores[:, :-1], ids[:, 1:]).mean()) - 10.76) < 0.12


def test_grouped_heads_equal_repeated_heads(one_device):
    config = dataclasses.replace(LLAMA_LIKE, key_value_heads=2)
    params, ids = spread_parameters(config), tokens(config)
    full = dataclasses.replace(config, key_value_heads=4)

    def repeat(kernel):  # [L, D, K*H] -> [L, D, N*H]
        layers, width, _ = kernel.shape
        return jnp.repeat(kernel.reshape(layers, width, 2, 4), 2, axis=2).reshape(layers, width, 16)

    attention = params["layers"]["attention"]
    repeated = attention | {name: {"kernel": repeat(attention[name]["kernel"])} for name in ("key", "value")}
    wide = params | {"layers": params["layers"] | {"attention": repeated}}
    np.testing.assert_allclose(apply(params, config, ids), apply(wide, full, ids), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("layers", "remat"), [(2, "block"), (3, "none")])
def test_alternating_layers_are_the_same_scanned_and_unrolled(layers, remat, one_device):
    config = dataclasses.replace(
        TINY, num_layers=layers, attention_pattern="alternating", attention_window=3, dropout=0.2, remat=remat
    )
    params, ids, key = spread_parameters(config), tokens(config), jax.random.key(5)
    scanned = dataclasses.replace(config, scan_layers=True)
    np.testing.assert_allclose(apply(params, config, ids, key), apply(params, scanned, ids, key), rtol=1e-4, atol=1e-4)


def test_layers_1_3_and_so_on_are_banded(one_device):
    """In two layers with a window of 3, the last token hears the first only through the dense one."""
    config = dataclasses.replace(TINY, num_layers=2, attention_pattern="alternating", attention_window=3)
    params = spread_parameters(config)
    first, second = (jax.tree.map(lambda x, i=i: x[i], params["layers"]) for i in (0, 1))
    x = jax.random.normal(jax.random.key(0), (1, 12, 16))

    def hears_the_first(layer, window):
        gradient = jax.grad(lambda x: decoder.block(x, layer, config, window=window)[0, -1].sum())(x)
        return bool(jnp.any(gradient[0, 0] != 0))

    assert hears_the_first(first, 0) and not hears_the_first(second, 3)
    by_hand = decoder.block(
        decoder.block(decoder.embed(params, config, tokens(config)), first, config), second, config, window=3
    )
    expected = decoder.layers.norm(by_hand, params["final_norm"], config)
    np.testing.assert_allclose(decoder.hidden_states(params, config, tokens(config)), expected, rtol=1e-5, atol=1e-5)


def test_dropout_on_the_matrix_is_one_mask_for_input_and_output(one_device):
    """OpenAI's: a dropped row is the same row for both sequences, at the input and in the output projection."""
    config = dataclasses.replace(GPT1_LIKE, embedding_dropout=0.5, embedding_dropout_on="matrix")
    params, key = spread_parameters(config), jax.random.key(1)
    dropped = decoder.drop_embeddings(params, config, key)
    for name, matrix in params["embedding"].items():
        kept = dropped["embedding"][name] != 0
        np.testing.assert_allclose(dropped["embedding"][name], np.where(kept, 2 * matrix, 0), rtol=1e-6)
        assert 0.35 < kept.mean() < 0.65
    ids = jnp.tile(tokens(config, batch=1), (2, 1))
    logits = apply(params, config, ids, key)
    np.testing.assert_array_equal(logits[0], logits[1])  # on the sum, the two rows would have masks of their own
    by_hand = decoder.unembed(decoder.hidden_states(dropped, config, ids), dropped["embedding"]["tokens"])
    np.testing.assert_allclose(logits, by_hand, rtol=1e-5, atol=1e-5)
    on_the_sum = dataclasses.replace(config, embedding_dropout_on="sum")
    assert not np.array_equal(*apply(params, on_the_sum, ids, key))


def test_the_loss_sees_the_dropout_on_the_matrix(one_device):
    from gpt_jax.training.losses import language_model_loss

    config = dataclasses.replace(GPT1_LIKE, embedding_dropout=0.5, embedding_dropout_on="matrix")
    params, ids, key = spread_parameters(config), tokens(config), jax.random.key(1)
    batch = {"tokens": ids, "targets": ids, "loss_mask": jnp.ones(ids.shape)}
    nats, _ = language_model_loss(params, config, batch, key)
    expected = cross_entropy(apply(params, config, ids, key), ids).sum()
    np.testing.assert_allclose(nats, expected, rtol=1e-5)
    assert not np.allclose(nats, language_model_loss(params, config, batch)[0], rtol=1e-3)


def llama3_frequency(frequency: float, factor: float, low: float, high: float, original: int) -> float:
    """The three branches as Meta's code states them, one frequency at a time."""
    wavelength = 2 * np.pi / frequency
    if wavelength < original / high:
        return frequency
    if wavelength > original / low:
        return frequency / factor
    smooth = (original / wavelength - low) / (high - low)
    return (1 - smooth) * frequency / factor + smooth * frequency


@pytest.mark.parametrize("preset", ["llama3.1-8B", "llama3.2-1B"])
def test_llama3_scaling_follows_the_written_formula(preset):
    config = model_config(preset)
    half = config.head_width // 2
    plain = 500_000.0 ** (-np.arange(half) / half)
    expected = [llama3_frequency(f, config.rope_factor, 1.0, 4.0, 8192) for f in plain]
    with jax.enable_x64(True):
        found = decoder.layers.rotary_frequencies(config, jnp.float64)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    branches = np.asarray(expected) / plain
    assert (
        branches.max() == 1
        and branches.min() == 1 / config.rope_factor
        and np.any((branches < 1) & (branches > branches.min()))
    )


def test_linear_scaling_divides_every_frequency():
    config = dataclasses.replace(LLAMA_LIKE, rope_scaling="linear", rope_factor=4.0)
    plain = dataclasses.replace(config, rope_scaling="none")
    scaled, unscaled = (decoder.layers.rotary_frequencies(c, jnp.float32) for c in (config, plain))
    np.testing.assert_allclose(scaled, unscaled / 4, rtol=1e-6)


def test_rotary_scores_depend_on_the_distance_alone(one_device):
    from gpt_jax.models.layers import rotate

    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))
    ones = jnp.ones((1, 12, 1, 1))
    config = dataclasses.replace(LLAMA_LIKE, head_dim=8)
    scores = jnp.einsum("btnh,bsnh->ts", *(rotate(x * ones, jnp.arange(12), config) for x in (q, k)))
    for distance in range(12):
        np.testing.assert_allclose(np.diagonal(scores, -distance), scores[distance, 0], rtol=1e-4)


def test_bfloat16_compute_stays_near_float32(one_device):
    params, ids = spread_parameters(TINY, std=0.05), tokens(TINY)
    half = apply(params, dataclasses.replace(TINY, compute_dtype="bfloat16"), ids)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(np.float32), apply(params, TINY, ids), atol=0.05)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (dict(num_heads=5), ["num_heads=5", "embed_dim=16"]),
        (dict(key_value_heads=3), ["key_value_heads=3"]),
        (dict(norm="batchnorm"), ["batchnorm", "layernorm", "rmsnorm"]),
        (dict(dropout=1.0), ["model.dropout=1.0"]),
        (dict(positions="rotary", embed_dim=20), ["rotary", "5 is odd"]),
        (dict(num_layers=0), ["num_layers=0"]),
        (dict(attention_pattern="alternating"), ["attention_window=0", "at least 1"]),
        (dict(rope_scaling="yarn"), ["yarn", "llama3"]),
        (dict(rope_low_frequency_factor=4.0), ["rope_low_frequency_factor=4.0"]),
        (dict(positions="rotary", positions_in_softmax=True), ["positions_in_softmax", "learned"]),
        (dict(compute_dtype="float16"), ["float16", "bfloat16"]),
    ],
)
def test_fields_that_cannot_be_are_named(fields, words):
    with pytest.raises(UserError) as error:
        dataclasses.replace(TINY, **fields)
    assert all(word in str(error.value) for word in words)


def test_an_unknown_preset_names_the_nearest_and_lists_all():
    with pytest.raises(UserError, match="gpt2-small") as error:
        model_config("gpt2-smal")
    assert all(name in str(error.value) for name in PRESETS)
