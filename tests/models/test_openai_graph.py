"""GPT-1 against OpenAI's own fine-tuning graph: golden/openai_graph.npz, values that their TensorFlow code produced.

Their toy: 50 tokens, 3 special symbols (the last marks where the classifier looks), 16 positions, width 32, 4 heads,
2 layers, dropouts 0; two choices for each of three examples. The loss is mean(classification) + 0.5 · mean(LM).
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.models import decoder
from gpt_jax.models.config import ModelConfig
from gpt_jax.models.heads import head_logits
from gpt_jax.models.likelihood import next_token_nats
from gpt_jax.training.losses import fine_tuning_loss, prediction_loss

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "openai_graph.npz")
TOKENS, POSITIONS, LAYERS, CLASSIFY = 53, 16, 2, 52
OPENAI = ModelConfig(
    vocab_size=TOKENS, context_length=POSITIONS, num_layers=LAYERS, num_heads=4, embed_dim=32, norm_position="post",
    final_norm=False, positions_in_softmax=True, embedding_dropout_on="matrix",
)  # fmt: skip


def tree_of(prefix: str) -> dict:
    """Their 27 arrays (`p_`: parameters, `g_`: gradients) as our parameters with the classifier beside them."""
    arrays = [GOLDEN[f"{prefix}_{i:03}"] for i in range(27)]
    matrix, classifier = arrays[0], arrays[25:]

    def stacked(index: int) -> np.ndarray:  # the array of that index in every layer
        return np.stack([arrays[1 + 12 * layer + index].squeeze() for layer in range(LAYERS)])

    def linear(index: int) -> dict:
        return {"kernel": stacked(index), "bias": stacked(index + 1)}

    def norm(index: int) -> dict:
        return {"scale": stacked(index), "bias": stacked(index + 1)}

    fused = {name: np.split(x, 3, axis=-1) for name, x in linear(0).items()}
    attention = {
        name: {"kernel": fused["kernel"][i], "bias": fused["bias"][i]}
        for i, name in enumerate(("query", "key", "value"))
    }
    return {
        "model": {
            "embedding": {"tokens": matrix[:TOKENS], "positions": matrix[TOKENS:]},
            "layers": {
                "attention": attention | {"output": linear(2)},
                "attention_norm": norm(4),
                "mlp": {"up": linear(6), "down": linear(8)},
                "mlp_norm": norm(10),
            },
        },
        "head": {"kernel": classifier[0], "bias": classifier[1]},
    }


def batch() -> dict[str, jax.Array]:
    """Their input as one of ours: the targets of a sequence are its next tokens; nothing follows the last."""
    tokens, mask = GOLDEN["x"][..., 0], GOLDEN["m"]
    behind = np.zeros_like(tokens[..., :1])
    return {
        "tokens": jnp.asarray(tokens),
        "targets": jnp.asarray(np.concatenate([tokens[..., 1:], behind], axis=-1)),
        "loss_mask": jnp.asarray(np.concatenate([mask[..., 1:], behind], axis=-1), jnp.float32),
        "extract_positions": jnp.argmax(tokens == CLASSIFY, axis=-1),
        "sequence_mask": jnp.ones((3, 2)),
        "labels": jnp.asarray(GOLDEN["y"]),
        "weights": jnp.ones(3),
    }


def total_loss(params: dict) -> jax.Array:
    loss, weight = fine_tuning_loss(
        params, OPENAI, batch(), combination="choice", target="classes", language_model_weight=0.5
    )
    return loss / weight


def hidden_states(params: dict) -> jax.Array:
    return decoder.hidden_states(params["model"], OPENAI, batch()["tokens"].reshape(6, POSITIONS))


@pytest.fixture
def params():
    return jax.tree.map(jnp.asarray, tree_of("p"))


def test_logits_and_losses_are_openais(params, one_device):
    hidden, inputs = jax.jit(hidden_states)(params), batch()
    logits = head_logits(hidden, inputs["extract_positions"], inputs["sequence_mask"], params["head"], "choice")
    np.testing.assert_allclose(logits, GOLDEN["clf_logits"], atol=5e-6, rtol=0)
    losses = prediction_loss(logits, inputs, "classes")
    np.testing.assert_allclose(losses, GOLDEN["clf_losses"], atol=5e-6, rtol=0)
    mask = inputs["loss_mask"].reshape(6, POSITIONS)
    nats = next_token_nats(params["model"], OPENAI, hidden, inputs["targets"].reshape(6, POSITIONS))
    np.testing.assert_allclose((nats * mask).sum(1) / mask.sum(1), GOLDEN["lm_losses"], atol=5e-6, rtol=0)
    np.testing.assert_allclose(jax.jit(total_loss)(params), GOLDEN["loss"], atol=5e-6, rtol=0)


def test_all_27_gradients_are_openais(params, one_device):
    gradients = jax.jit(jax.grad(total_loss))(params)
    expected = tree_of("g")
    assert (
        len(jax.tree.leaves(expected)) == 2 + 2 * 8 + 2
    )  # their fused q|k|v kernels and biases are three of ours each
    for (path, found), theirs in zip(
        jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(found, theirs, atol=2e-6, rtol=0, err_msg=jax.tree_util.keystr(path))


def test_the_position_rows_in_the_softmax_matter(params, one_device):
    """Without them the language model's loss is lower by more than 0.1 nats, so the test above would notice."""
    hidden, targets = hidden_states(params), batch()["targets"].reshape(6, POSITIONS)
    tokens_only = dataclasses.replace(OPENAI, positions_in_softmax=False)
    alone, joined = (next_token_nats(params["model"], config, hidden, targets) for config in (tokens_only, OPENAI))
    assert float(jnp.mean(joined - alone)) > 0.1
    assert bool(jnp.all(joined > alone))
