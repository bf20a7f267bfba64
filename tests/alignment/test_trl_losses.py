"""Our losses and gradients are those of TRL's trainers on the same weights and answers (tests/golden/trl_losses.py)."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_models import part, write_golden_folder

from gpt_jax.alignment.ranked_losses import answer_log_likelihoods, answer_rewards, preference_loss, reward_loss
from gpt_jax.data.ranked_batches import RankedSet
from gpt_jax.training.losses import language_model_loss
from gpt_jax.weights.export import export_tensors
from gpt_jax.weights.huggingface import read_folder
from gpt_jax.weights.load import load_parameters

END, PAIRS, TIME = 0, 4, 15
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "trl_losses.npz"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as stored:
        return dict(stored)


@pytest.fixture
def model(tmp_path, one_device):
    """The checkpoint in float64, and its parameters, which are the reference's."""
    write_golden_folder("gpt2", tmp_path)
    with jax.enable_x64(True):
        checkpoint = read_folder(tmp_path)
        config = dataclasses.replace(checkpoint.config, compute_dtype="float64", param_dtype="float64")
        checkpoint = dataclasses.replace(checkpoint, config=config)
        yield checkpoint, load_parameters(checkpoint, one_device)


@pytest.fixture(scope="module")
def pairs(golden) -> RankedSet:
    """TRL's pairs as a run has them: prompt, answer and end."""
    sequences = [
        [np.array([*golden[f"prompt/{i}"], *golden[f"{side}/{i}"], END], np.int32) for side in ("chosen", "rejected")]
        for i in range(PAIRS)
    ]
    starts = np.array([[len(golden[f"prompt/{i}"])] * 2 for i in range(PAIRS)])
    ranks = np.tile(np.arange(2, dtype=np.float32), (PAIRS, 1))
    return RankedSet(sequences, None, 1, 16, starts=starts, columns={"ranks": ranks})


def ranked_batch(data: RankedSet, **columns: np.ndarray) -> dict[str, np.ndarray]:
    """All prompts of `data`, as a step gets them."""
    data, every = dataclasses.replace(data, columns=data.columns | columns), np.arange(len(data))
    return data.batch(every, np.ones(len(data)), data.bucket(every))


def policy_of(reference):
    return jax.tree.map(lambda x: 1.1 * x, reference)


def batch(golden, side: str) -> dict[str, np.ndarray]:
    """Prompts with their answers of one side and an end; the loss falls on answer and end."""
    tokens, mask = np.zeros((PAIRS, TIME + 1), np.int32), np.zeros((PAIRS, TIME + 1), np.float32)
    for row in range(PAIRS):
        prompt, answer = golden[f"prompt/{row}"], [*golden[f"{side}/{row}"], END]
        tokens[row, : len(prompt) + len(answer)] = [*prompt, *answer]
        mask[row, len(prompt) : len(prompt) + len(answer)] = 1
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "loss_mask": mask[:, 1:]}


def assert_gradients_are(theirs: dict[str, np.ndarray], gradients, checkpoint) -> None:
    tensors = export_tensors(gradients, checkpoint.config, checkpoint.layout)
    ours = {checkpoint.tensors[name].name: tensor.read() for name, tensor in tensors.items()}
    for name, expected in theirs.items():
        limit = 1e-5 * np.max(np.abs(expected))
        np.testing.assert_allclose(ours[f"transformer.{name}"], expected, rtol=0, atol=limit, err_msg=name)


def test_sft_is_the_mean_over_the_answers_tokens(golden, model):
    checkpoint, reference = model

    def loss(params):
        nats, tokens = language_model_loss(params, checkpoint.config, batch(golden, "chosen"))
        return nats / tokens

    value, gradients = jax.jit(jax.value_and_grad(loss))(policy_of(reference))
    np.testing.assert_allclose(value, golden["sft/loss"], rtol=1e-6)
    assert_gradients_are(part(golden, "sft/gradient"), gradients, checkpoint)


def test_a_reward_models_batch_has_trls_loss_gradients_and_rewards(golden, pairs, model):
    found, reference = model
    policy = policy_of(reference)
    batch = ranked_batch(pairs)
    params = {"model": policy, "head": {"kernel": jnp.asarray(golden["score"].T, jnp.float64), "bias": jnp.zeros(1)}}
    (total, prompts), gradients = jax.jit(
        jax.value_and_grad(lambda params: reward_loss(params, found.config, batch), has_aux=True)
    )(params)
    np.testing.assert_allclose(total / prompts, golden["reward/loss"], rtol=1e-6)
    rewards = jax.jit(lambda params: answer_rewards(params, found.config, batch))(params)
    np.testing.assert_allclose(np.sort(rewards, 0), np.sort(golden["reward/rewards"].T, 0), rtol=1e-5)  # in any order
    theirs = part(golden, "reward/gradient")
    np.testing.assert_allclose(gradients["head"]["kernel"].T / prompts, theirs.pop("score.weight"), rtol=0, atol=1e-5)
    assert_gradients_are(theirs, jax.tree.map(lambda g: g / prompts, gradients["model"]), found)


@pytest.mark.parametrize("kind", ["sigmoid", "ipo"])
def test_a_preference_batch_has_trls_loss_and_gradients(kind, golden, pairs, model):
    found, reference = model
    policy = policy_of(reference)
    cached = jax.jit(lambda params, batch: answer_log_likelihoods(params, found.config, batch))(
        reference, ranked_batch(pairs)
    )
    batch = ranked_batch(pairs, reference_log_probs=np.asarray(cached))
    settings = {"kind": kind, "beta": float(golden["beta"])}
    (total, prompts), gradients = jax.jit(
        jax.value_and_grad(lambda params: preference_loss(params, found.config, batch, **settings), has_aux=True)
    )(policy)
    np.testing.assert_allclose(total / prompts, golden[f"{kind}/loss"], rtol=1e-6)
    assert_gradients_are(part(golden, f"{kind}/gradient"), jax.tree.map(lambda g: g / prompts, gradients), found)
