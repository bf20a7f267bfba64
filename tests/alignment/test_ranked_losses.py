"""What reward models and DPO minimise, through the batches of their runs: of many answers, and on many devices."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gpt_jax.alignment.ranked_losses import (
    answer_log_likelihoods,
    preference_loss,
    reward_head_specs,
    reward_loss,
)
from gpt_jax.data.ranked_batches import RankedSet
from gpt_jax.models import decoder
from gpt_jax.models.parameters import init_parameters
from gpt_jax.models.presets import model_config
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.parallel.rules import sharding
from gpt_jax.training.state import abstract_state, create_state, state_builder
from gpt_jax.training.step import compile_train_step

MODEL = model_config("llama3.2-1B", num_layers=1, num_heads=4, key_value_heads=2, embed_dim=16, head_dim=4, mlp_dim=32,
                     context_length=32, vocab_size=40)  # fmt: skip


def batch_of(data: RankedSet, **columns: np.ndarray) -> dict[str, np.ndarray]:
    """All prompts of `data`, as a step gets them."""
    data = dataclasses.replace(data, columns=data.columns | columns)
    every = np.arange(len(data))
    return data.batch(every, np.ones(len(data)), data.bucket(every))


def ranked(counts=(2, 4, 3, 2, 4, 3, 2, 4)) -> RankedSet:
    """Prompts with so many random answers, some of them tied."""
    draw = np.random.default_rng(0)
    shape = (len(counts), max(counts))
    starts = np.tile(draw.integers(1, 5, (len(counts), 1)), (1, max(counts)))
    sequences = [
        [draw.integers(3, 40, starts[row, 0] + draw.integers(1, 9)).astype(np.int32) for _ in range(count)]
        for row, count in enumerate(counts)
    ]
    ranks = np.tile(np.arange(shape[1], dtype=np.float32), (shape[0], 1))
    ranks[0, : counts[0]] = (1, 0, 1, 2)[: counts[0]]
    return RankedSet(sequences, None, 0, 32, starts=starts, columns={"ranks": ranks})


def parameters(config=MODEL) -> dict:
    head = init_parameters(reward_head_specs(config), jax.random.key(1), jnp.float32)
    return {"model": decoder.init(config, jax.random.key(0)), "head": head}


def pair_by_pair(data: RankedSet, row: int) -> RankedSet:
    """Each pair of one prompt's answers as a prompt of its own."""
    ranks = data.columns["ranks"][row]
    found = [
        (better, worse)
        for better in range(data.counts[row])
        for worse in range(data.counts[row])
        if ranks[better] < ranks[worse]
    ]
    columns = {name: np.array([column[row][list(pair)] for pair in found]) for name, column in data.columns.items()}
    sequences = [[data.sequences[row][number] for number in pair] for pair in found]
    starts = np.array([data.starts[row][list(pair)] for pair in found])
    return RankedSet(sequences, None, 0, 32, starts=starts, columns=columns)


@pytest.mark.parametrize("kind", ["reward", "sigmoid"])
def test_one_forward_pass_an_answer_is_the_mean_of_pair_by_pair(kind, one_device):
    data, params = ranked((4,)), parameters()
    reference = np.random.default_rng(1).normal(-20, 3, data.columns["ranks"].shape).astype(np.float32)
    data.columns["reference_log_probs"] = reference

    @jax.jit
    def loss_and_gradients(params, batch):
        def loss(params):
            if kind == "reward":
                total, prompts = reward_loss(params, MODEL, batch)
            else:
                total, prompts = preference_loss(params["model"], MODEL, batch, kind=kind, beta=0.2)
            return total / prompts

        return jax.value_and_grad(loss)(params)

    whole, pieces = (loss_and_gradients(params, batch_of(own)) for own in (data, pair_by_pair(data, 0)))
    assert batch_of(pair_by_pair(data, 0))["tokens"].shape[0] == 5  # of six pairs one is a tie
    np.testing.assert_allclose(whole[0], pieces[0], rtol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6 * np.abs(y).max()), *(
        gradients for _, gradients in (whole, pieces)
    ))  # fmt: skip


def test_smoothed_labels_are_some_of_them_the_wrong_way_round(one_device):
    data = ranked((2, 2))
    reference = np.array([[-9.0, -20], [-30, -11]], np.float32)
    params = parameters()["model"]

    @jax.jit
    def loss(ranks, smoothing):
        batch = batch_of(data, ranks=ranks, reference_log_probs=reference)
        return preference_loss(params, MODEL, batch, kind="sigmoid", beta=0.1, label_smoothing=smoothing)[0]

    ranks = data.columns["ranks"]
    np.testing.assert_allclose(loss(ranks, 0.2), 0.8 * loss(ranks, 0.0) + 0.2 * loss(1 - ranks, 0.0), rtol=1e-5)


# --- on several devices


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["reward", "sigmoid"])
def test_eight_devices_under_two_meshes_learn_as_one_does(kind):
    data = ranked()
    reference = np.random.default_rng(1).normal(-20, 3, data.columns["ranks"].shape).astype(np.float32)
    batch = batch_of(data, reference_log_probs=reference)
    optimizer = optax.adam(1e-2)

    def loss(params, batch, key):
        if kind == "reward":
            return reward_loss(params, MODEL, batch, key)
        return preference_loss(params["model"], MODEL, batch, key, kind="sigmoid", beta=0.2)

    def losses(accumulation: int, **sizes: int) -> list[float]:
        mesh = make_mesh(sizes, jax.devices()[: math.prod(sizes.values())])
        abstract = abstract_state(state_builder(lambda key: parameters(), optimizer, 0), mesh)
        state = create_state(state_builder(lambda key: parameters(), optimizer, 0), abstract, mesh)
        step = compile_train_step(
            abstract, mesh, loss_fn=loss, optimizer=optimizer, schedule=lambda step: 1e-2, accumulation=accumulation
        )
        rows = sharding((8,), ("batch",), mesh)
        placed = {name: jax.device_put(x, rows) for name, x in batch.items()}
        found = []
        for _ in range(3):
            state, metrics = step(state, placed, 0)
            found.append(float(metrics["loss"]))
        return found

    alone = losses(1)
    assert alone[2] < alone[0]
    np.testing.assert_allclose(losses(1, data=8), alone, atol=2e-5)
    np.testing.assert_allclose(losses(2, data=2, fsdp=2, tensor=2), alone, atol=2e-5)


def test_a_policy_that_is_its_reference_has_the_loss_ln_2(one_device):
    data, params = ranked(), parameters()["model"]
    same = answer_log_likelihoods(params, MODEL, batch_of(data))
    batch = batch_of(data, reference_log_probs=np.asarray(same))
    total, prompts = preference_loss(params, MODEL, batch, kind="sigmoid", beta=0.1)
    assert total / prompts == pytest.approx(math.log(2), abs=1e-6)
