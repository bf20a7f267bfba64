"""What a model says of answers, whatever their number and lengths: rewards, and how likely it finds them."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from gpt_jax.data.example_batches import ExampleSet, evaluation_batches
from gpt_jax.inference.continuations import compile_continuation_scorer
from gpt_jax.inference.prediction import compile_predictor
from gpt_jax.models.config import ModelConfig
from gpt_jax.parallel.rules import sharding
from gpt_jax.runs.questions import Texts

# (parameters, answers) -> one number an answer, float32 [n]
Rewards = Callable[[Any, Sequence[np.ndarray]], np.ndarray]
LogLikelihoods = Callable[[Any, Sequence[np.ndarray], Sequence[int]], np.ndarray]


def make_rewards(model: ModelConfig, mesh: jax.sharding.Mesh, pad: int, batch_size: int, length: int) -> Rewards:
    """A function (`model` and `head`, ids of prompts with their answers) -> the reward at the last token of each.

    Args:
      batch_size: read at once; length: the most tokens of one.
    """
    predictor, rows = compile_predictor(model, mesh, "single", probabilities=False), _rows(batch_size, mesh)

    def rewards(params: Any, sequences: Sequence[np.ndarray]) -> np.ndarray:
        examples = ExampleSet([(ids,) for ids in sequences], None, pad, length)
        batches = evaluation_batches(examples, batch_size=batch_size, sharding=rows)
        return predictor(params, batches, len(examples))[:, 0]

    return rewards


def make_log_likelihoods(
    model: ModelConfig, mesh: jax.sharding.Mesh, pad: int, batch_size: int, length: int
) -> LogLikelihoods:
    """A function (a decoder's parameters, ids of prompts with their answers, where each answer starts) ->

    the log-probability of each answer, the sum over its tokens in nats.
    """
    score, rows = compile_continuation_scorer(model, mesh), _rows(batch_size, mesh)

    def log_likelihoods(params: Any, sequences: Sequence[np.ndarray], starts: Sequence[int]) -> np.ndarray:
        texts = Texts.of(sequences, np.asarray(starts), pad, length)
        found = np.zeros(len(sequences), np.float32)
        for index, values, _ in score(params, evaluation_batches(texts, batch_size=batch_size, sharding=rows)):
            found[index] = values
        return found

    return log_likelihoods


def _rows(batch_size: int, mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
    return sharding((batch_size,), ("batch",), mesh)
