"""GPT-1 against OpenAI's own fine-tuning graph: golden/openai_graph.npz, values that their TensorFlow code produced.

Their toy: 50 tokens, 3 special symbols (the last marks where the classifier looks), 16 positions, width 32, 4 heads,
2 layers, dropouts 0; two choices for each of three examples. The loss is mean(classification) + 0.5 · mean(LM).
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.models import decoder, layers
from gpt_jax.models.config import ModelConfig
from gpt_jax.models.likelihood import next_token_nats, weighted_nats

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
        "classifier": {"kernel": classifier[0], "bias": classifier[1]},
    }


def forward(params: dict) -> tuple[jax.Array, jax.Array]:
    """Hidden states [6, 16, 32] of the six sequences, and the classifier's logits [3, 2]."""
    tokens = jnp.asarray(GOLDEN["x"][..., 0].reshape(6, POSITIONS))
    hidden = decoder.hidden_states(params["model"], OPENAI, tokens)
    extracted = hidden[jnp.arange(6), jnp.argmax(tokens == CLASSIFY, axis=1)]
    return hidden, layers.linear(extracted, params["classifier"]).reshape(3, 2)


def targets_and_mask() -> tuple[jax.Array, jax.Array]:
    tokens, mask = GOLDEN["x"][..., 0].reshape(6, POSITIONS), GOLDEN["m"].reshape(6, POSITIONS)
    return jnp.asarray(tokens[:, 1:]), jnp.asarray(mask[:, 1:])


def total_loss(params: dict) -> jax.Array:
    hidden, logits = forward(params)
    targets, mask = targets_and_mask()
    weights = mask / mask.sum(axis=1, keepdims=True) / 6
    classification = -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(3), GOLDEN["y"]])
    return classification + 0.5 * weighted_nats(params["model"], OPENAI, hidden[:, :-1], targets, weights)


@pytest.fixture
def params():
    return jax.tree.map(jnp.asarray, tree_of("p"))


def test_logits_and_losses_are_openais(params, one_device):
    hidden, logits = jax.jit(forward)(params)
    np.testing.assert_allclose(logits, GOLDEN["clf_logits"], atol=5e-6, rtol=0)
    classification = -jax.nn.log_softmax(logits)[jnp.arange(3), GOLDEN["y"]]
    np.testing.assert_allclose(classification, GOLDEN["clf_losses"], atol=5e-6, rtol=0)
    targets, mask = targets_and_mask()
    nats = next_token_nats(params["model"], OPENAI, hidden[:, :-1], targets)
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
    import dataclasses

    hidden, _ = forward(params)
    targets, _ = targets_and_mask()
    alone = next_token_nats(
        params["model"], dataclasses.replace(OPENAI, positions_in_softmax=False), hidden[:, :-1], targets
    )
    joined = next_token_nats(params["model"], OPENAI, hidden[:, :-1], targets)
    assert float(jnp.mean(joined - alone)) > 0.1
    assert bool(jnp.all(joined > alone))
