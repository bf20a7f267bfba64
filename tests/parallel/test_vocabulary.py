"""A vocabulary that `tensor` does not divide: divided all the same, and nobody can tell from the numbers."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.inference.engine import Engine
from gpt_jax.inference.sampling import Sampling
from gpt_jax.models import decoder
from gpt_jax.models.config import ModelConfig
from gpt_jax.models.likelihood import next_token_nats, weighted_nats
from gpt_jax.parallel.mesh import make_mesh, single_device_mesh
from gpt_jax.parallel.rules import look_up, sharding, tree_shardings
from gpt_jax.training.checkpoints import Checkpoints, digests
from gpt_jax.training.optimizers import make_optimizer
from gpt_jax.training.state import abstract_state, create_state, initial_state, state_builder

V = 61  # over 4 devices: 16 rows each, and 3 too many
CONFIG = ModelConfig(vocab_size=V, context_length=16, num_layers=1, num_heads=4, embed_dim=16)
MESHES = ({"data": 2, "tensor": 4}, {"fsdp": 2, "tensor": 4})


@functools.cache
def params():
    """Parameters of one device, on the host."""
    with jax.set_mesh(single_device_mesh()):
        return jax.device_get(jax.jit(functools.partial(decoder.init, CONFIG))(jax.random.key(0)))


def inputs():
    tokens = np.random.default_rng(0).integers(0, V, (4, 17)).astype(np.int32)
    return tokens[:, :-1], tokens[:, 1:]


def loss(params, tokens, targets, config=CONFIG):
    return weighted_nats(params, config, decoder.hidden_states(params, config, tokens), targets, jnp.ones((4, 16)))


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_no_device_holds_all_logits_or_all_of_the_table(sizes):
    mesh = make_mesh(sizes)
    shapes = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), params(), tree_shardings(params(), mesh)
    )
    with jax.set_mesh(mesh):
        text = jax.jit(jax.grad(loss)).lower(shapes, *inputs()).compile().as_text()
    assert not re.findall(rf"f32\[\d+,16,(?:{V}|64)\]", text)
    assert not re.findall(rf"f32\[(?:{V}|64),16\]", text)
    assert re.findall(r"f32\[\d+,16,16\]", text)


@pytest.mark.parametrize(
    "sizes",
    [{"fsdp": 8}, {"data": 2, "fsdp": 4}, {"fsdp": 2, "sequence": 4}, {"data": 2, "fsdp": 2, "tensor": 2}],
    ids=str,
)
@pytest.mark.parametrize("batch", [8, 5])
def test_a_look_up_and_its_gradient_are_those_of_one_device(sizes, batch):
    rng = np.random.default_rng(0)
    table_VD, tokens_BT = rng.normal(size=(V, 16)), rng.integers(0, V, (batch, 12))
    weight_BTD = rng.normal(size=(batch, 12, 16)).astype(np.float32)
    mesh = make_mesh(sizes)
    placed = jax.device_put(jnp.asarray(table_VD, jnp.float32), sharding(table_VD.shape, ("vocab", "embed"), mesh))
    with jax.set_mesh(mesh):
        found, pull_back = jax.jit(lambda table: jax.vjp(lambda table: look_up(table, tokens_BT), table))(placed)
        (gradient_VD,) = jax.jit(pull_back)(weight_BTD)
    np.testing.assert_array_equal(found, table_VD[tokens_BT].astype(np.float32))
    expected_VD = np.zeros((V, 16))
    np.add.at(expected_VD, tokens_BT, weight_BTD)
    np.testing.assert_allclose(gradient_VD, expected_VD, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("vocab_size", [V, 64])
def test_looking_tokens_up_brings_no_device_the_states_of_the_whole_batch(vocab_size):
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    table = jax.ShapeDtypeStruct((vocab_size, 16), "float32")
    table = {"embedding": {"tokens": table}}
    shardings = tree_shardings(table, mesh)
    shapes = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), table, shardings)
    config = dataclasses.replace(CONFIG, vocab_size=vocab_size, positions="none")
    tokens = jax.ShapeDtypeStruct((8, 16), "int32", sharding=sharding((8, 16), ("batch", "time"), mesh))
    with jax.set_mesh(mesh):
        square = jax.grad(lambda table, tokens: jnp.sum(decoder.embed(table, config, tokens) ** 2))
        text = jax.jit(square, out_shardings=shardings).lower(shapes, tokens).compile().as_text()
    assert not re.findall(r"f32\[8,16,\d+\]", text)
    assert re.findall(r"f32\[2,16,16\]", text)


@pytest.mark.parametrize("sizes", MESHES, ids=str)
@pytest.mark.parametrize("output", [dict(), dict(tied_output=False, logits_chunk=5)], ids=str)
def test_a_filling_row_never_wins_and_never_learns(sizes, output):
    """Every real logit is -16; a row of zeros beside them would have 0, and take all of the probability."""
    config, mesh = dataclasses.replace(CONFIG, **output), make_mesh(sizes)
    room = "embedding" if config.tied_output else "unembedding"
    table = {
        room: {"tokens": jax.device_put(-jnp.ones((V, 16)), tree_shardings(params(), mesh)["embedding"]["tokens"])}
    }
    hidden, targets = jnp.ones((4, 16, 16)), inputs()[1]
    with jax.set_mesh(mesh):
        nats = jax.jit(lambda table: next_token_nats(table, config, hidden, targets))(table)
        gradient = jax.jit(jax.grad(lambda table: weighted_nats(table, config, hidden, targets, jnp.ones((4, 16)))))
        gradient = gradient(table)[room]["tokens"]
        likeliest = jax.jit(lambda t: jnp.argmax(decoder.unembed(hidden, decoder.output_matrix(t, config)), -1))(table)
    np.testing.assert_allclose(nats, np.log(V), rtol=1e-6)
    counts = np.bincount(targets.ravel(), minlength=V)
    np.testing.assert_allclose(gradient, np.repeat((64 / V - counts)[:, None], 16, axis=1), rtol=1e-5, atol=1e-5)
    assert (np.asarray(likeliest) == 0).all()


def test_sampling_on_a_mesh_draws_what_one_device_draws():
    drawn = []
    for mesh in (single_device_mesh(), make_mesh({"data": 2, "tensor": 4})):
        engine = Engine(jax.device_put(params(), tree_shardings(params(), mesh)), CONFIG, mesh, slots=4)
        for number, prompt in enumerate([[1, 2], [3], [4, 5], [6]]):
            engine.submit(prompt, Sampling(4, temperature=5.0, top_k=50), number)
        drawn.append({event.request: event.tokens for event in engine.step(4)})
    assert drawn[0] == drawn[1]
    assert len({id for tokens in drawn[0].values() for id in tokens}) > 4


def test_a_checkpoint_knows_nothing_of_the_mesh_that_wrote_it(tmp_path):
    optimizer = make_optimizer("adamw", lambda count: 1e-3)
    build = state_builder(functools.partial(decoder.init, CONFIG), optimizer, 0)

    def abstract(**sizes):
        return abstract_state(build, make_mesh(sizes, jax.devices()[: np.prod(list(sizes.values()))]))

    written = abstract(data=2, tensor=4)
    shardings = jax.tree.map(lambda x: x.sharding, written)
    saved = create_state(
        lambda: initial_state(jax.tree.map(jnp.asarray, params()), optimizer), written, written.step.sharding.mesh
    )
    assert jax.tree.map(lambda x: x.sharding, saved) == shardings
    checkpoints = Checkpoints(tmp_path / "c", keep=1)
    checkpoints.save(saved)
    checkpoints.close()
    for sizes in (dict(tensor=4), dict(fsdp=2, tensor=2), dict(fsdp=2, tensor=4), dict(data=1)):
        restored = Checkpoints(tmp_path / "c", keep=1).restore(abstract(**sizes))
        assert restored.params["embedding"]["tokens"].shape == (V, 16)
        assert digests(restored) == digests(saved)
        for one, other in zip(jax.tree.leaves(saved), jax.tree.leaves(restored), strict=True):
            np.testing.assert_array_equal(one, other)
