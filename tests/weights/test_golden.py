"""Our decoder with transformers' weights computes what transformers computes (tests/golden/transformers_models.py)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_models import FAMILIES, part, write_golden_folder

from gpt_jax.models import decoder
from gpt_jax.models.likelihood import cross_entropy
from gpt_jax.weights.export import export_tensors
from gpt_jax.weights.huggingface import read_folder
from gpt_jax.weights.load import load_parameters


@pytest.fixture(params=FAMILIES)
def family(request, tmp_path):
    values = write_golden_folder(request.param, tmp_path)
    return read_folder(tmp_path), values


def in_precision(checkpoint, dtype: str):
    return dataclasses.replace(
        checkpoint, config=dataclasses.replace(checkpoint.config, compute_dtype=dtype, param_dtype=dtype)
    )


def loss_and_logits(params, config, tokens):
    hidden = decoder.hidden_states(params, config, tokens)
    logits = decoder.unembed(hidden, decoder.output_matrix(params, config))
    return jnp.mean(cross_entropy(logits[:, :-1], tokens[:, 1:])), logits


def as_theirs(gradients, checkpoint) -> dict[str, np.ndarray]:
    """Our gradients under the names and in the shapes of transformers' tensors."""
    tensors = export_tensors(gradients, checkpoint.config, checkpoint.layout)
    return {checkpoint.tensors[name].name: tensor.read() for name, tensor in tensors.items()}


def assert_near(ours, theirs, limit: float, name: str, scale: float | None = None) -> None:
    """Within `limit` of `scale`, the largest absolute value by default."""
    scale = np.max(np.abs(theirs)) if scale is None else scale
    difference = np.max(np.abs(np.asarray(ours, np.float64) - theirs)) / scale
    assert difference <= limit, f"{name}: {difference:.1e} of its scale {scale:.2g}"


def test_logits_loss_and_gradients_in_float64(family, one_device):
    checkpoint, values = family
    with jax.enable_x64(True):
        checkpoint = in_precision(checkpoint, "float64")
        params = load_parameters(checkpoint, one_device)
        run = jax.jit(jax.value_and_grad(loss_and_logits, has_aux=True), static_argnums=1)
        (loss, logits), gradients = run(params, checkpoint.config, values["tokens"])
        assert logits.dtype == jnp.float64
        np.testing.assert_allclose(logits, values["logits"], rtol=0, atol=1e-10)
        np.testing.assert_allclose(loss, values["loss"], rtol=0, atol=1e-10)
        ours, theirs = as_theirs(gradients, checkpoint), part(values, "gradient")
        assert ours.keys() == theirs.keys()
        for name in theirs:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=1e-10, err_msg=name)


def test_hidden_states_of_every_layer_in_float64(family, one_device):
    checkpoint, values = family
    with jax.enable_x64(True):
        checkpoint = in_precision(checkpoint, "float64")
        config, params = checkpoint.config, load_parameters(checkpoint, one_device)
        x = decoder.embed(params, config, values["tokens"])
        for layer in range(config.num_layers):
            np.testing.assert_allclose(
                x, values[f"hidden/{layer}"], rtol=0, atol=1e-10, err_msg=f"before layer {layer}"
            )
            x = decoder.block(x, jax.tree.map(lambda leaf, layer=layer: leaf[layer], params["layers"]), config)
        last = decoder.hidden_states(params, config, values["tokens"])
        np.testing.assert_allclose(last, values[f"hidden/{config.num_layers}"], rtol=0, atol=1e-10)
        if not config.final_norm:
            np.testing.assert_allclose(x, last, rtol=0, atol=1e-12)


def test_logits_loss_and_gradients_in_float32(family, one_device):
    checkpoint, values = family
    params = load_parameters(checkpoint, one_device)
    run = jax.jit(jax.value_and_grad(loss_and_logits, has_aux=True), static_argnums=1)
    (loss, logits), gradients = run(params, checkpoint.config, values["tokens"])
    assert_near(logits, values["logits"], 1e-5, "logits")
    assert_near(loss, values["loss"], 1e-5, "loss")
    theirs = part(values, "gradient")
    for name, gradient in as_theirs(gradients, checkpoint).items():
        # A bias is judged by its kernel's scale: the gradient of a key bias is a sum that all but cancels.
        module = name.rsplit(".", 1)[0]
        scale = max(np.max(np.abs(x)) for other, x in theirs.items() if other.startswith(f"{module}."))
        assert_near(gradient, theirs[name], 1e-5, name, scale)
