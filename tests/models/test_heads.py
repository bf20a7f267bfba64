"""What fine-tuning's predictions may not depend on: order, padding, company."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.inference.prediction import compile_predictor
from gpt_jax.models import decoder
from gpt_jax.models.config import ModelConfig
from gpt_jax.models.heads import head_logits, head_specs
from gpt_jax.training.losses import fine_tuning_loss

CONFIG = ModelConfig(
    vocab_size=40, context_length=32, num_layers=2, num_heads=4, embed_dim=16, norm_position="post", final_norm=False
)
START, DELIMITER, EXTRACT = 37, 38, 39


def parameters(outputs: int) -> dict:
    params = {
        "model": decoder.init(CONFIG, jax.random.key(0)),
        "head": decoder.init_parameters(head_specs(CONFIG, outputs), jax.random.key(1), jnp.float32),
    }
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    return tree.unflatten([x + 0.25 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)])


def make_batch(examples: list[list[list[int]]], length: int) -> dict[str, jax.Array]:
    """Examples as lists of sequences, padded with 0 to `length`."""
    choices = max(map(len, examples))
    tokens = np.zeros((len(examples), choices, length), np.int32)
    lengths = np.zeros((len(examples), choices), np.int32)
    for row, example in enumerate(examples):
        for choice, sequence in enumerate(example):
            tokens[row, choice, : len(sequence)], lengths[row, choice] = sequence, len(sequence)
    targets = np.pad(tokens[..., 1:], ((0, 0), (0, 0), (0, 1)))
    batch = {
        "tokens": tokens,
        "targets": targets,
        "loss_mask": (np.arange(1, length + 1) < lengths[..., None]).astype(np.float32),
        "sequence_mask": (lengths > 0).astype(np.float32),
        "extract_positions": np.maximum(lengths - 1, 0),
        "weights": np.ones(len(examples), np.float32),
        "index": np.arange(len(examples), dtype=np.int32),
        "labels": np.zeros(len(examples), np.int32),
    }
    return jax.tree.map(jnp.asarray, batch)


def sequence(*texts: list[int]) -> list[int]:
    joined = [START]
    for number, text in enumerate(texts):
        joined += [DELIMITER] * bool(number) + text
    return [*joined, EXTRACT]


def predict(params, examples, combination, mesh, length=32):
    predictor = compile_predictor(CONFIG, mesh, combination)
    return predictor(params, [make_batch(examples, length)], len(examples))


A, B, C = [1, 2, 3, 4], [5, 6, 7], [8, 9, 10, 11, 12, 13]


def test_swapping_the_texts_of_a_similarity_example_changes_no_bit(one_device):
    params = parameters(3)
    pairs = [(A, B), (B, C), (C, A)]
    one = predict(params, [[sequence(x, y), sequence(y, x)] for x, y in pairs], "sum", one_device)
    other = predict(params, [[sequence(y, x), sequence(x, y)] for x, y in pairs], "sum", one_device)
    np.testing.assert_array_equal(one, other)
    assert np.ptp(one, axis=0).min() > 1e-3  # different pairs do get different answers


def test_permuting_the_answers_permutes_the_probabilities(one_device):
    params = parameters(1)
    answers = [sequence(A, x) for x in (B, C, [14])]
    one = predict(params, [answers], "choice", one_device)[0]
    order = [2, 0, 1]
    other = predict(params, [[answers[k] for k in order]], "choice", one_device)[0]
    np.testing.assert_allclose(other, one[order], atol=1e-6)
    assert np.ptp(one) > 1e-3 and one.sum() == pytest.approx(1, abs=1e-6)


def test_an_answer_that_does_not_exist_gets_nothing(one_device):
    params = parameters(1)
    examples = [[sequence(A, B), sequence(A, C)], [sequence(A, B), sequence(A, C), sequence(A, [3])]]
    both = predict(params, examples, "choice", one_device)
    assert both[0, 2] == 0
    np.testing.assert_allclose(both[0, :2], predict(params, examples[:1], "choice", one_device)[0], atol=1e-6)


@pytest.mark.parametrize("combination", ["single", "sum", "choice"])
def test_padding_and_company_change_no_score(combination, one_device):
    outputs, sequences = (1 if combination == "choice" else 3), (1 if combination == "single" else 2)
    params = parameters(outputs)
    examples = [[sequence(x, y)] * 1 + [sequence(y, x)] * (sequences - 1) for x, y in ((A, B), (C, A), (B, B))]
    together = predict(params, examples, combination, one_device, length=32)
    alone = [predict(params, [example], combination, one_device, length=16)[0] for example in examples]
    np.testing.assert_allclose(together, np.stack(alone), atol=1e-6)


def test_the_choices_of_an_example_share_one_dropout_mask(one_device):
    hidden = jnp.tile(jax.random.normal(jax.random.key(0), (1, 8, 16)), (4, 1, 1))  # two examples of two equal choices
    head = parameters(1)["head"]
    logits = head_logits(
        hidden, jnp.full((2, 2), 3), jnp.ones((2, 2)), head, "choice", dropout_rate=0.5, key=jax.random.key(1)
    )
    np.testing.assert_array_equal(logits[:, 0], logits[:, 1])
    assert logits[0, 0] != logits[1, 0]


def loss_of(params, examples, weight, length=32, **changes):
    batch = make_batch(examples, length) | changes
    return fine_tuning_loss(params, CONFIG, batch, combination="single", target="classes", language_model_weight=weight)


def test_l3_is_l2_plus_lambda_times_a_mean_over_sequences(one_device):
    """A long sequence counts as much as a short one: the mean of each first."""
    params, examples = parameters(2), [[sequence(A)], [sequence(C + C + B)]]
    l2, count = loss_of(params, examples, 0.0)
    l3, _ = loss_of(params, examples, 0.5)
    assert count == 2
    by_hand = 0.0
    for [ids] in examples:
        logits = decoder.Decoder(CONFIG).apply({"params": params["model"]}, jnp.array([ids]))
        nats = -jax.nn.log_softmax(logits[0, :-1])[jnp.arange(len(ids) - 1), jnp.array(ids[1:])]
        by_hand += 0.5 * float(nats.mean())
    assert float(l3 - l2) == pytest.approx(by_hand, rel=1e-5)


def test_rows_of_weight_0_count_nothing(one_device):
    params, examples = parameters(2), [[sequence(A)], [sequence(B)]]
    one, count = loss_of(params, examples[:1], 0.5)
    both, counted = loss_of(params, examples, 0.5, weights=jnp.array([1.0, 0.0]))
    assert count == counted == 1
    np.testing.assert_allclose(both, one, rtol=1e-6)


def test_scores_are_learnt_as_numbers_or_as_distributions(one_device):
    params = parameters(6)
    batch = make_batch([[sequence(A)]], 16)
    logits = jax.nn.log_softmax(
        head_logits(
            decoder.hidden_states(params["model"], CONFIG, batch["tokens"][:, 0]), batch["extract_positions"],
            batch["sequence_mask"], params["head"], "single",
        )
    )[0]  # fmt: skip
    soft = jnp.array([[0, 0.25, 0.75, 0, 0, 0]])
    settings = dict(combination="single", language_model_weight=0.0)
    loss, _ = fine_tuning_loss(params, CONFIG, batch | {"scores": soft}, target="score_distribution", **settings)
    assert float(loss) == pytest.approx(float(-0.25 * logits[1] - 0.75 * logits[2]), rel=1e-5)
    one = dataclasses.replace(CONFIG)
    number, _ = fine_tuning_loss(
        {"model": params["model"], "head": jax.tree.map(lambda x: x[..., :1], params["head"])}, one,
        batch | {"scores": jnp.array([0.5])}, target="score", **settings,
    )  # fmt: skip
    assert float(number) >= 0
