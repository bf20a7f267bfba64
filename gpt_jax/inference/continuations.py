"""How likely a model finds the continuations of contexts."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from gpt_jax.models import decoder
from gpt_jax.models.config import ModelConfig
from gpt_jax.models.likelihood import next_token_nats

Batch = dict[str, jax.Array]
POSITIONS = 64  # of logits at a time, where the model does not say how many: a long context's would not fit


def compile_continuation_scorer(
    config: ModelConfig, mesh: jax.sharding.Mesh
) -> Callable[[Any, Iterable[Batch]], Iterator[tuple[np.ndarray, np.ndarray]]]:
    """A function (parameters, batches) -> (index int [rows], log-probability float32 [rows]) of each batch.

    A batch is a dict of tokens int32 [R, T]; targets int32 [R, K], the tokens of each continuation, and places int32
    [R, K], where in the text each is predicted, one before it; mask float32 [R, K], 0 behind the continuation's end;
    index int32 [R], which text each row is, and weights float32 [R], 0 for fillers, which are left out. The
    log-probability of a continuation, in nats, is its tokens' sum, over tokens alone (not GPT-1's positions).
    """
    config = dataclasses.replace(config, positions_in_softmax=False, logits_chunk=config.logits_chunk or POSITIONS)

    def log_probabilities(params: Any, batch: Batch) -> jax.Array:
        hidden_RTD = decoder.hidden_states(params, config, batch["tokens"])
        hidden_RKD = jnp.take_along_axis(hidden_RTD, batch["places"][..., None], axis=1)  # no logits for the context
        return -jnp.sum(next_token_nats(params, config, hidden_RKD, batch["targets"]) * batch["mask"], axis=1)

    jitted = jax.jit(
        lambda params, batch: (log_probabilities(params, batch), batch["index"], batch["weights"]),
        out_shardings=NamedSharding(mesh, PartitionSpec()),
    )

    def score(params: Any, batches: Iterable[Batch]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for batch in batches:
            with jax.set_mesh(mesh):
                values, index, weights = map(np.asarray, jitted(params, batch))
            yield index[weights > 0], values[weights > 0]

    return score
