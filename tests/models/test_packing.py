"""Texts that share a row do not know of each other: the same losses and gradients as one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gpt_jax.data.packing import MarkedText, PackedTexts
from gpt_jax.models import attention, decoder
from gpt_jax.models.attention_kernels import choose_kernel, splash_attention
from gpt_jax.models.presets import model_config
from gpt_jax.parallel.mesh import make_mesh, single_device_mesh
from gpt_jax.training.losses import language_model_loss

SIZES = dict(num_layers=2, num_heads=4, embed_dim=16, context_length=24, vocab_size=32)
FLOAT64 = dict(compute_dtype="float64", param_dtype="float64")
MODELS = {
    "learned positions": ("gpt2-small", {}),
    "post-norm": ("gpt1", {}),
    "rotary, grouped queries": ("llama3.2-1B", dict(key_value_heads=2, mlp_dim=32, head_dim=4)),
    "banded, scanned": ("gpt3-125M", dict(attention_window=4, scan_layers=True, remat="block", num_layers=4)),
    "blocks of queries": ("gpt2-small", dict(attention_block=5, remat="dots", logits_chunk=7)),
}
LENGTHS = (5, 1, 9, 6, 11, 12, 24)  # predictions of each text; rows have 24


def texts() -> list[MarkedText]:
    draw = np.random.default_rng(0)
    return [MarkedText(draw.integers(0, 31, n + 1).astype(np.int32), np.arange(n + 1) % 3 > 0) for n in LENGTHS]


def rows(*, packed: bool) -> dict[str, np.ndarray]:
    """All texts; `packed` in rows that they share, else in a row each, whose rest counts nothing."""
    own = PackedTexts(texts(), 24, pad=0, packed=packed)
    return own.batch(range(len(own)))


@pytest.mark.parametrize("name", MODELS)
def test_a_packed_batch_has_the_loss_and_gradients_of_its_texts_one_by_one(name, one_device):
    preset, fields = MODELS[name]
    config = model_config(preset, **SIZES | FLOAT64 | dict(dropout=0.0) | fields)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: 3 * x, decoder.init(config, jax.random.key(0)))
        run = jax.jit(jax.value_and_grad(lambda p, b: language_model_loss(p, config, b)[0]))
        assert len(rows(packed=True)["tokens"]) == 3
        loss, gradients = run(params, rows(packed=True))
        expected_loss, expected = run(params, rows(packed=False))
        np.testing.assert_allclose(loss, expected_loss, rtol=1e-10)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-10), gradients, expected)


def test_no_gradient_crosses_from_one_text_to_another(one_device):
    config = model_config("gpt3-125M", **SIZES | dict(attention_window=4, dropout=0.0))
    params = decoder.init(config, jax.random.key(0))
    segments = jnp.array([[1] * 5 + [2] * 9 + [3] * 4 + [0] * 6])

    def outputs(x):  # of the layers, from the embeddings on
        positions = decoder.segment_positions(segments)
        period = decoder.packed_period(decoder.blocks(config), segments, positions)
        for layer in range(config.num_layers):
            x = period[layer % 2](x, jax.tree.map(lambda leaf, layer=layer: leaf[layer], params["layers"]))
        return x.sum(-1)[0]

    x = jax.random.normal(jax.random.key(1), (1, 24, 16))
    influence = np.abs(jax.jacrev(outputs)(x)[:, 0]).sum(-1)  # [T of the output, S of the input]
    same = np.asarray(segments[0][:, None] == segments[0])
    causal = np.tril(np.ones((24, 24), bool))
    assert (influence[~(same & causal)] == 0).all() and (influence[same & causal] > 0).all()


def test_positions_begin_anew_with_each_text():
    segments = np.array([[1, 1, 1, 2, 3, 3, 0, 0], [4, 4, 4, 4, 4, 4, 4, 4]])
    expected = [[0, 1, 2, 0, 0, 1, 0, 1], [0, 1, 2, 3, 4, 5, 6, 7]]
    np.testing.assert_array_equal(decoder.segment_positions(jnp.asarray(segments)), expected)


def test_a_row_of_one_text_is_what_it_was_without_segments(one_device):
    config = model_config("llama3.2-1B", **SIZES | dict(key_value_heads=2, mlp_dim=32, head_dim=4))
    params = jax.tree.map(lambda x: 10 * x, decoder.init(config, jax.random.key(0)))  # so that positions matter
    tokens = np.arange(24)[None] % 31
    one = decoder.hidden_states(params, config, tokens, segments_BT=np.ones((1, 24), np.int32))
    np.testing.assert_allclose(one, decoder.hidden_states(params, config, tokens), atol=1e-4)  # of numbers up to 30


@pytest.mark.parametrize("window", [0, 100])
def test_splash_keeps_texts_apart_as_the_plain_kernel_does(window):
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.normal(key, (2, 256, heads, 32)) for key, heads in zip(keys, (4, 2, 2), strict=True))
    segments = jnp.repeat(jnp.array([[1, 1, 2, 3, 3, 3, 4, 0], [1] * 5 + [2] * 3]), 32, axis=1)
    with jax.set_mesh(single_device_mesh()):
        if window:
            expected = attention.banded_attention(q, k, v, window=window, segments_BT=segments)
        else:
            expected = attention.dot_product_attention(q, k, v, segments_BT=segments)
    mesh = make_mesh({"data": 2, "tensor": 2}, jax.devices()[:4])
    with jax.set_mesh(mesh):
        attend = jax.jit(lambda *qkv: splash_attention(*qkv, window=window, interpret=True, segments_BT=segments))
        np.testing.assert_allclose(attend(q, k, v), expected, atol=2e-5)


@pytest.mark.parametrize("axes", [{"data": 2, "fsdp": 2, "tensor": 2}, {"data": 2, "sequence": 4}])
def test_packed_losses_on_eight_devices_are_those_of_one(axes):
    config = model_config("gpt2-small", **SIZES | dict(dropout=0.0))
    batch = {name: np.concatenate([x, x[:1]]) for name, x in rows(packed=True).items()}

    def loss_and_norm(mesh):
        with jax.set_mesh(mesh):
            params = decoder.init(config, jax.random.key(0))
            run = jax.jit(jax.value_and_grad(lambda p, b: language_model_loss(p, config, b)[0]))
            loss, gradients = run(params, batch)
            return float(loss), float(optax.tree.norm(gradients))

    np.testing.assert_allclose(loss_and_norm(make_mesh(axes)), loss_and_norm(single_device_mesh()), rtol=2e-5)


def test_cudnn_gives_way_where_texts_share_a_row(monkeypatch):
    config = model_config("gpt2-small", **SIZES | dict(attention_kernel="cudnn", compute_dtype="bfloat16"))
    monkeypatch.setattr("gpt_jax.models.attention_kernels.device_kind", lambda mesh: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr("gpt_jax.models.attention_kernels._compute_capability", lambda: (9, 0))
    monkeypatch.setattr("gpt_jax.models.attention_kernels._cudnn_obstacle", lambda config, device: None)
    assert choose_kernel(config, 24) == "cudnn" and choose_kernel(config, 24, packed=True) == "plain"
