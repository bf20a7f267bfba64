"""Our losses and gradients are those of TRL's trainers on the same weights and answers (tests/golden/trl_losses.py)."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_models import part, write_golden_folder

from gpt_jax.alignment.comparisons import comparison_losses
from gpt_jax.alignment.preferences import PairLogProbs, answer_log_probs, dpo_losses, ipo_losses
from gpt_jax.models import decoder
from gpt_jax.models.likelihood import next_token_nats
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


def log_probs(params, config, rows, *, mean: bool) -> jax.Array:
    hidden = decoder.hidden_states(params, config, rows["tokens"])
    return answer_log_probs(-next_token_nats(params, config, hidden, rows["targets"]), rows["loss_mask"], mean=mean)


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


@pytest.mark.parametrize(("kind", "losses"), [("sigmoid", dpo_losses), ("ipo", ipo_losses)])
def test_dpo_and_ipo(kind, losses, golden, model):
    checkpoint, reference = model
    chosen, rejected = batch(golden, "chosen"), batch(golden, "rejected")

    def pairs(params):
        sides = (log_probs(params, checkpoint.config, rows, mean=kind == "ipo") for rows in (chosen, rejected))
        return PairLogProbs(*sides)

    def loss(params, cached):
        return jnp.mean(losses(pairs(params), cached, beta=float(golden["beta"])))

    value, gradients = jax.jit(jax.value_and_grad(loss))(policy_of(reference), jax.jit(pairs)(reference))
    np.testing.assert_allclose(value, golden[f"{kind}/loss"], rtol=1e-6)
    assert_gradients_are(part(golden, f"{kind}/gradient"), gradients, checkpoint)


def test_the_reward_model(golden, model):
    checkpoint, reference = model
    sides = [batch(golden, side) for side in ("chosen", "rejected")]
    score = jnp.asarray(golden["score"], jnp.float64)

    def rewards(params, score):
        """[P, 2], read at each answer's end."""
        columns = []
        for rows in sides:
            ends = np.argmax(np.cumsum(rows["loss_mask"], axis=1), axis=1) + 1  # `tokens` lacks the last one
            whole = np.concatenate([rows["tokens"], rows["targets"][:, -1:]], axis=1)
            hidden = decoder.hidden_states(params, checkpoint.config, whole)
            columns.append(hidden[np.arange(PAIRS), ends] @ score[0])
        return jnp.stack(columns, axis=1)

    def loss(params, score):
        ranked = jnp.broadcast_to(jnp.arange(2), (PAIRS, 2))
        found = rewards(params, score)
        return jnp.mean(comparison_losses(found, ranked, jnp.ones_like(ranked))[0]), found

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (value, found), (gradients, score_gradient) = run(policy_of(reference), score)
    np.testing.assert_allclose(value, golden["reward/loss"], rtol=1e-6)
    np.testing.assert_allclose(np.sort(found, 0), np.sort(golden["reward/rewards"].T, 0), rtol=1e-5)  # any order
    theirs = part(golden, "reward/gradient")
    np.testing.assert_allclose(score_gradient, theirs.pop("score.weight"), rtol=0, atol=1e-5)
    assert_gradients_are(theirs, gradients, checkpoint)
