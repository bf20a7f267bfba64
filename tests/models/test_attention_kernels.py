"""Fused attention kernels against the plain ones; which is chosen; and attention where time is divided."""

import functools
import re

import jax
import numpy as np
import pytest

from gpt_jax.errors import UserError
from gpt_jax.models import attention, attention_kernels
from gpt_jax.models.attention_kernels import check_kernel, choose_kernel, cudnn_attention, splash_attention
from gpt_jax.models.config import ModelConfig
from gpt_jax.models.presets import model_config
from gpt_jax.parallel.mesh import AXES, make_mesh, single_device_mesh
from gpt_jax.parallel.rules import sharding
from gpt_jax.runs.recipe import check_model_fits

AXES_BTNH = ("batch", "time", "heads", None)


def operands(time, heads=4, kv_heads=2, width=64, batch=2):
    """Queries, keys, values, and what the output's gradient is."""
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(batch, time, count, width) for count in (heads, kv_heads, kv_heads, heads)]
    spreads = (2.0, 1.0, 0.5, 1.0)
    return [c * jax.random.normal(key, shape) for c, key, shape in zip(spreads, keys, shapes, strict=True)]


def plain_attention(q, k, v, *, window=0):
    if window:
        return attention.banded_attention(q, k, v, window=window)
    return attention.dot_product_attention(q, k, v)


def with_gradients(kernel, q, k, v, gradient, mesh=None):
    """The output, and the gradients of q, k and v."""

    def both(q, k, v, gradient):
        out, backward = jax.vjp(kernel, q, k, v)
        return out, *backward(gradient)

    with jax.set_mesh(mesh or single_device_mesh()):
        return jax.jit(both)(q, k, v, gradient)


def assert_all_close(results, expected, atol):
    for name, one, other in zip(("output", "q", "k", "v"), results, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=atol, rtol=0, err_msg=name)


@pytest.mark.parametrize(
    ("time", "heads", "kv_heads", "width", "window"),
    [(256, 2, 2, 64, 0), (256, 4, 2, 32, 0), (384, 2, 1, 64, 100)],
)
def test_splash_is_the_plain_kernel_forward_and_backward(time, heads, kv_heads, width, window):
    arrays = operands(time, heads, kv_heads, width, batch=1)
    splash = functools.partial(splash_attention, window=window, interpret=True)
    expected = with_gradients(functools.partial(plain_attention, window=window), *arrays)
    assert_all_close(with_gradients(splash, *arrays), expected, atol=2e-5)


def test_splash_on_a_mesh_works_on_each_devices_batch_and_heads():
    arrays = operands(128)
    splash = functools.partial(splash_attention, interpret=True)
    mesh = make_mesh({"data": 2, "tensor": 2}, jax.devices()[:4])
    assert_all_close(with_gradients(splash, *arrays, mesh), with_gradients(plain_attention, *arrays), atol=2e-5)


@pytest.mark.parametrize("window", [0, 5])
def test_what_is_asked_of_cudnn_is_the_plain_kernel(window, monkeypatch):
    """Of the same function of JAX, by its other implementation."""
    asked, original = [], jax.nn.dot_product_attention

    def by_xla(*arrays, implementation, **settings):
        asked.append(implementation)
        return original(*arrays, implementation="xla", **settings)

    monkeypatch.setattr(jax.nn, "dot_product_attention", by_xla)
    arrays = operands(16, width=8)
    cudnn = functools.partial(cudnn_attention, window=window)
    expected = with_gradients(functools.partial(plain_attention, window=window), *arrays)
    mesh = make_mesh({"data": 2, "tensor": 2}, jax.devices()[:4])
    for results in (with_gradients(cudnn, *arrays), with_gradients(cudnn, *arrays, mesh)):
        assert_all_close(results, expected, atol=5e-6)
    assert set(asked) == {"cudnn"}


# --- which kernel ---


def mesh_of(kind, **sizes):
    """A mesh of devices that are not there."""
    device = jax.sharding.AbstractDevice(**{"device_kind": kind, "num_cores": None} | _platform(kind))
    shape = tuple(sizes.get(axis, 1) for axis in AXES)
    return jax.sharding.AbstractMesh(shape, AXES, abstract_device=device)


def _platform(kind):
    """The field that AbstractDevice has from jax 0.10.1 on."""
    fields = jax.sharding.AbstractDevice.__dataclass_fields__
    platform = "cpu" if kind == "cpu" else "tpu" if kind.startswith("TPU") else "gpu"
    return {"platform": platform} if "platform" in fields else {}


def chosen(kind, time, *, window=0, dropping=False, **fields):
    config = model_config("gpt2-small", context_length=8192, **fields)
    with jax.sharding.use_abstract_mesh(mesh_of(kind)):
        return choose_kernel(config, time, window=window, dropping=dropping)


@pytest.fixture
def said(monkeypatch):
    """The lines that are announced."""
    lines = []
    attention_kernels._say_once.cache_clear()
    monkeypatch.setattr(attention_kernels, "announce", lines.append)
    yield lines
    attention_kernels._say_once.cache_clear()


def gpu_of(capability, monkeypatch):
    monkeypatch.setattr(attention_kernels, "_compute_capability", lambda: capability)


@pytest.mark.parametrize(
    ("kind", "time", "fields", "kernel"),
    [
        ("cpu", 8192, {}, "plain"),
        ("TPU v5 lite", 1024, {}, "plain"),
        ("TPU v5 lite", 2048, {}, "splash"),
        ("TPU v5 lite", 8192, {"window": 256}, "plain"),
        ("TPU v5 lite", 8192, {"window": 4096}, "splash"),
        ("TPU v5 lite", 8192, {"attention_kernel": "plain"}, "plain"),
        ("TPU v5 lite", 512, {"attention_kernel": "splash"}, "splash"),
        ("NVIDIA H100 80GB HBM3", 512, {"compute_dtype": "bfloat16"}, "cudnn"),
        ("NVIDIA H100 80GB HBM3", 512, {"compute_dtype": "bfloat16", "attention_kernel": "plain"}, "plain"),
    ],
)
def test_the_kernel_follows_devices_and_length(kind, time, fields, kernel, said, monkeypatch):
    gpu_of((9, 0), monkeypatch)
    assert chosen(kind, time, **fields) == kernel
    assert not said


@pytest.mark.parametrize(
    ("kind", "capability", "fields", "words"),
    [
        ("TPU v5 lite", (), {"dropping": True, "dropout": 0.1}, "splash cannot drop .*model.attention_dropout is 0.1"),
        ("TPU v5 lite", (), {"time": 4000}, "splash takes sequences of a multiple of 128 tokens, not of 4000"),
        ("TPU v5 lite", (), {"compute_dtype": "float64"}, "splash takes .*bfloat16 or float32, not float64"),
        ("TPU v3", (), {}, "splash runs on TPUs from v4, and the mesh is of TPU v3"),
        ("NVIDIA H100", (9, 0), {}, "cudnn takes model.compute_dtype=bfloat16, not float32"),
        ("NVIDIA H100", (9, 0), {"dropping": True, "dropout": 0.1}, "cudnn cannot drop"),
        ("Tesla T4", (7, 5), {"compute_dtype": "bfloat16"}, "compute capability 8.0 .Ampere., and this is Tesla T4"),
        ("AMD Instinct MI300X", (), {"compute_dtype": "bfloat16"}, "cudnn .*this is AMD Instinct MI300X"),
        ("NVIDIA A100", (8, 0), {"compute_dtype": "bfloat16", "head_dim": 256}, "up to 128 on NVIDIA A100, not 256"),
        ("NVIDIA A100", (8, 0), {"compute_dtype": "bfloat16", "head_dim": 36}, "a multiple of 8 .*not 36"),
        ("cpu", (), {"attention_kernel": "splash"}, "splash runs on TPUs from v4, and the mesh is of cpu"),
    ],
)
def test_a_kernel_that_cannot_do_it_gives_way_which_is_said_once(kind, capability, fields, words, said, monkeypatch):
    gpu_of(capability, monkeypatch)
    fields = {"time": 4096} | fields
    assert [chosen(kind, **fields) for _ in range(2)] == ["plain", "plain"]
    (line,) = said
    assert re.search(words, line)


@pytest.mark.parametrize(
    ("fields", "kind", "time", "words"),
    [
        ({"attention_kernel": "splash"}, "cpu", None, "splash runs on TPUs from v4, and the mesh is of cpu.*=auto"),
        ({"attention_kernel": "splash"}, "TPU v4", 1000, "a multiple of 128 tokens, not of 1000"),
        ({"attention_kernel": "splash", "dropout": 0.1}, "TPU v4", 1024, "model.attention_dropout is 0.1"),
        ({"attention_kernel": "cudnn"}, "TPU v4", 1024, "cudnn runs on NVIDIA GPUs, and the mesh is of TPU v4"),
    ],
)
def test_a_run_that_asks_for_a_kernel_that_cannot_is_refused(fields, kind, time, words):
    with pytest.raises(UserError, match=words):
        check_model_fits(model_config("gpt2-small", **fields), mesh_of(kind), time)


@pytest.mark.parametrize("kernel", ["auto", "plain", "splash"])
def test_what_a_kernel_can_do_is_not_refused(kernel):
    dropping = {} if kernel == "splash" else {"dropout": 0.1}
    check_kernel(model_config("gpt2-small", attention_kernel=kernel, **dropping), mesh_of("TPU v4"), 1024)


def test_an_unknown_kernel_is_refused():
    with pytest.raises(UserError, match="attention_kernel='flash': expected one of auto, plain, cudnn, splash"):
        model_config("gpt2-small", attention_kernel="flash")


# --- time divided over devices ---


def layer(heads, kv_heads, *, window=0, dropout=0.0, width=8, time=32):
    """Attention as a layer does it, by whichever kernel, with a key for dropout."""
    config = ModelConfig(
        vocab_size=8, context_length=time, num_layers=1, num_heads=heads, key_value_heads=kv_heads,
        embed_dim=heads * width, dropout=dropout,
    )  # fmt: skip
    key = jax.random.key(1) if dropout else None
    return lambda q, k, v: attention.attend(q, k, v, config, key, window=window)


SEQUENCE_MESHES = ({"data": 2, "tensor": 2, "sequence": 2}, {"sequence": 8})


def divided(arrays, mesh):
    return [jax.device_put(x, sharding(x.shape, AXES_BTNH, mesh)) for x in arrays]


@pytest.mark.parametrize("sizes", SEQUENCE_MESHES, ids=str)
@pytest.mark.parametrize(("kv_heads", "window", "dropout"), [(8, 0, 0.0), (2, 0, 0.3), (4, 5, 0.3)])
def test_attention_over_divided_time_is_that_of_one_device(sizes, kv_heads, window, dropout):
    """With its dropout: repeated key/value heads leave the mask as it was."""
    mesh, arrays = make_mesh(sizes), operands(32, 8, kv_heads, 8, batch=4)
    attend = layer(8, kv_heads, window=window, dropout=dropout)
    expected = with_gradients(attend, *arrays)
    assert_all_close(with_gradients(attend, *divided(arrays, mesh), mesh), expected, atol=5e-6)


@pytest.mark.parametrize("sizes", SEQUENCE_MESHES, ids=str)
@pytest.mark.parametrize("kv_heads", [8, 2])
def test_time_is_exchanged_for_heads_by_all_to_alls_alone(sizes, kv_heads):
    mesh = make_mesh(sizes)
    arrays = [
        jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding(x.shape, AXES_BTNH, mesh))
        for x in jax.eval_shape(lambda: operands(32, 8, kv_heads, 8, batch=4))
    ]

    def both(q, k, v, gradient):
        out, backward = jax.vjp(layer(8, kv_heads), q, k, v)
        return out, *backward(gradient)

    with jax.set_mesh(mesh):
        text = jax.jit(both).lower(*arrays).compile().as_text()
    kinds = re.findall(r" (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(", text)
    assert kinds == ["all-to-all"] * 8  # q, k, v, output; and their gradients


def test_heads_that_time_cannot_be_exchanged_for_are_still_right():
    arrays = operands(32, 3, 1, 8, batch=2)
    mesh = make_mesh({"data": 4, "sequence": 2})
    expected = with_gradients(layer(3, 1), *arrays)
    assert_all_close(with_gradients(layer(3, 1), *arrays, mesh), expected, atol=5e-6)


@pytest.mark.parametrize(
    ("sizes", "works"), [(dict(sequence=5), "1, 2, 3, 4, 6, 12"), (dict(tensor=2, sequence=4), "1, 2, 3, 6")]
)
def test_heads_that_sequence_does_not_divide_are_refused_with_the_sizes_that_work(sizes, works):
    with pytest.raises(UserError, match=rf"mesh.sequence=\d does not divide .*num_heads=12.*work: {works}\."):
        check_model_fits(model_config("gpt2-small"), mesh_of("cpu", **sizes))
