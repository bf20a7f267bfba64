"""One mesh or another, whole batches or parts of them: the same training."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from gpt_jax.models import decoder
from gpt_jax.models.config import ModelConfig
from gpt_jax.parallel.mesh import make_mesh, single_device_mesh
from gpt_jax.parallel.rules import sharding
from gpt_jax.training.losses import language_model_loss
from gpt_jax.training.optimizers import make_optimizer
from gpt_jax.training.schedules import make_schedule
from gpt_jax.training.state import abstract_state, initial_state, state_builder
from gpt_jax.training.step import compile_train_step

STEPS, BATCH, TIME = 20, 16, 16
# 61 rows, which neither 2 nor 4 divides; groups of query heads; one layer, which is quick to compile.
CONFIG = ModelConfig(vocab_size=61, context_length=TIME, num_layers=1, num_heads=4, embed_dim=16, key_value_heads=2)
MESHES = ({"data": 8}, {"fsdp": 8}, {"data": 2, "tensor": 4}, {"fsdp": 2, "tensor": 2, "sequence": 2})


@functools.cache
def first_state(optimizer):
    """The state of step 0 on the host, drawn once."""
    with jax.set_mesh(single_device_mesh()):
        draw = lambda: initial_state(decoder.init(CONFIG, jax.random.key(0)), optimizer)  # noqa: E731
        return jax.device_get(jax.jit(draw)())


@functools.cache
def schedule_and_optimizer():
    schedule = make_schedule("cosine", peak=3e-3, steps=STEPS, warmup_steps=4)
    return schedule, make_optimizer("adamw", schedule, weight_decay=0.1, clip_norm=1.0)


def losses(mesh, *, accumulation=1, dropout=0.0):
    """The loss of each step on random batches with some targets masked, and the last state."""
    schedule, optimizer = schedule_and_optimizer()
    config = dataclasses.replace(CONFIG, dropout=dropout)
    abstract = abstract_state(state_builder(functools.partial(decoder.init, config), optimizer, 0), mesh)
    state = jax.device_put(first_state(optimizer), jax.tree.map(lambda x: x.sharding, abstract))
    step = compile_train_step(
        abstract, mesh, loss_fn=lambda params, batch, key: language_model_loss(params, config, batch, key),
        optimizer=optimizer, schedule=schedule, accumulation=accumulation,
    )  # fmt: skip
    rows, history, rng = sharding((BATCH, TIME), ("batch", "time"), mesh), [], np.random.default_rng(0)
    for _ in range(STEPS):
        ids = rng.integers(0, CONFIG.vocab_size, (BATCH, TIME + 1)).astype(np.int32)
        mask = (rng.random((BATCH, TIME)) > 0.2).astype(np.float32)
        batch = {"tokens": ids[:, :-1], "targets": ids[:, 1:], "loss_mask": mask}
        state, metrics = step(state, jax.device_put(batch, rows), 7)
        history.append(metrics["loss"])
    return np.array(jax.device_get(history)), state


@functools.cache
def of_one_device(dropout=0.0):
    return losses(single_device_mesh(), dropout=dropout)


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_twenty_steps_on_any_mesh_are_those_of_one_device(sizes):
    history, state = losses(make_mesh(sizes))
    np.testing.assert_allclose(history, of_one_device()[0], rtol=2e-5)
    for one, other in zip(jax.tree.leaves(of_one_device()[1].params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-4)  # Adam divides small gradients by their own size
    kernel = state.params["layers"]["mlp"]["up"]["kernel"]
    divided = kernel.size / kernel.addressable_shards[0].data.size
    assert divided == sizes.get("fsdp", 1) * sizes.get("tensor", 1)


@pytest.mark.parametrize(
    ("sizes", "accumulation"),
    [({"data": 8}, 2), ({"data": 2, "tensor": 4}, 8), ({"fsdp": 2, "tensor": 2, "sequence": 2}, 4)],
    ids=str,
)
def test_parts_of_a_batch_add_up_to_it_on_any_mesh(sizes, accumulation):
    history, _ = losses(make_mesh(sizes), accumulation=accumulation)
    np.testing.assert_allclose(history, of_one_device()[0], rtol=2e-5)


@pytest.mark.parametrize("sizes", MESHES[2:], ids=str)
def test_what_is_dropped_does_not_depend_on_the_mesh(sizes):
    """Not on whether there is one, either: with the same seed one device drops the same."""
    history, _ = losses(make_mesh(sizes), dropout=0.3)
    np.testing.assert_allclose(history, of_one_device(0.3)[0], rtol=2e-5)
    assert np.abs(history / of_one_device()[0] - 1).max() > 1e-3
