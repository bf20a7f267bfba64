"""The train step: accumulation, meshes and dropout keys change nothing that they should not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gpt_jax.models import decoder
from gpt_jax.models.config import ModelConfig
from gpt_jax.parallel.mesh import single_device_mesh
from gpt_jax.parallel.rules import sharding
from gpt_jax.training.losses import language_model_loss
from gpt_jax.training.optimizers import make_optimizer
from gpt_jax.training.schedules import make_schedule
from gpt_jax.training.state import abstract_state, create_state, state_builder
from gpt_jax.training.step import compile_train_step

CONFIG = ModelConfig(vocab_size=64, context_length=16, num_layers=2, num_heads=4, embed_dim=32)
BATCH = 8


def losses(mesh, *, steps=6, accumulation=1, seed=0, config=CONFIG, same_batch=False):
    """Losses and gradient norms of the first steps on random batches, and the last state."""
    schedule = make_schedule("cosine", peak=1e-2, steps=steps, warmup_steps=2)
    optimizer = make_optimizer("adamw", schedule, weight_decay=0.1, clip_norm=1.0)
    build = state_builder(functools.partial(decoder.init, config), optimizer, seed)
    abstract = abstract_state(build, mesh)
    state = create_state(build, abstract, mesh)
    step = compile_train_step(
        abstract, mesh, loss_fn=lambda params, batch, key: language_model_loss(params, config, batch, key),
        optimizer=optimizer, schedule=schedule, accumulation=accumulation,
    )  # fmt: skip
    rows, history = sharding((BATCH, 16), ("batch", "time"), mesh), []
    for index in range(steps):
        rng = np.random.default_rng(0 if same_batch else index)
        ids = rng.integers(0, 64, (BATCH, 17)).astype(np.int32)
        batch = {
            "tokens": ids[:, :-1],
            "targets": ids[:, 1:],
            "loss_mask": (rng.random((BATCH, 16)) > 0.2).astype("f4"),
        }
        state, metrics = step(state, jax.device_put(batch, rows), seed)
        history.append((float(metrics["loss"]), float(metrics["gradient_norm"])))
    return np.array(history), state


@functools.cache
def reference():
    return losses(single_device_mesh())


def test_the_first_loss_is_that_of_guessing_and_the_state_counts_its_steps():
    history, state = reference()
    assert int(state.step) == 6
    assert np.isfinite(history).all() and abs(history[0, 0] - np.log(64)) < 0.2


@pytest.mark.parametrize("accumulation", [2, 4, 8])
def test_accumulation_gives_the_whole_batchs_losses(accumulation):
    history, _ = losses(single_device_mesh(), accumulation=accumulation)
    np.testing.assert_allclose(history, reference()[0], rtol=2e-5)


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not():
    again, _ = losses(single_device_mesh())
    assert (again == reference()[0]).all()
    other, _ = losses(single_device_mesh(), seed=1)
    assert (other != reference()[0]).any()


def test_the_gradient_norm_is_that_of_the_mean_loss_of_unmasked_targets(one_device):
    params = decoder.init(CONFIG, jax.random.key(0))
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 64, (BATCH, 17)).astype(np.int32)
    mask = (rng.random((BATCH, 16)) > 0.2).astype(np.float32)

    def mean_loss(params):
        logits = decoder.Decoder(CONFIG).apply({"params": params}, ids[:, :-1])
        log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits), ids[:, 1:, None], -1)[..., 0]
        return -(log_probs * mask).sum() / mask.sum()

    loss, gradients = jax.value_and_grad(mean_loss)(params)
    np.testing.assert_allclose(reference()[0][0], (loss, optax.tree.norm(gradients)), rtol=1e-5)


def test_repeating_one_batch_lowers_its_loss():
    history, _ = losses(single_device_mesh(), steps=12, same_batch=True)
    assert history[-1, 0] < history[0, 0] - 0.5
