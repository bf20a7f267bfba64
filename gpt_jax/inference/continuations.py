"""How likely a model finds the continuations of contexts."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from gpt_jax.models import decoder
from gpt_jax.models.config import ModelConfig
from gpt_jax.models.likelihood import next_token_nats_and_hits

Batch = dict[str, jax.Array]
POSITIONS = 64  # of logits at a time, where the model does not say how many: a long context's would not fit


def compile_continuation_scorer(
    config: ModelConfig, mesh: jax.sharding.Mesh
) -> Callable[[Any, Iterable[Batch]], Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]]:
    """A function (parameters, batches) -> (index int [rows], log-probability float32 [rows], greedy bool [rows]).

    It yields these three of each batch; greedy: whether each token of the continuation is the likeliest at its place.

    A batch is a dict of tokens int32 [R, T]; targets int32 [R, K], the tokens of each continuation, and places int32
    [R, K], where in the text each is predicted, one before it; mask float32 [R, K], 0 behind the continuation's end;
    index int32 [R], which text each row is, and weights float32 [R], 0 for fillers, which are left out. The
    log-probability of a continuation, in nats, is its tokens' sum, over tokens alone (not GPT-1's positions).
    """
    config = dataclasses.replace(
        config,
        positions_in_softmax=False,
        logits_chunk=config.logits_chunk or POSITIONS,
        scan_layers=True,  # each length is a program of its own: compiled in a fraction of the time, about as fast
    )

    @functools.partial(jax.jit, out_shardings=NamedSharding(mesh, PartitionSpec()))
    def outcomes(params: Any, batch: Batch) -> tuple[jax.Array, ...]:
        hidden_RTD = decoder.hidden_states(params, config, batch["tokens"])
        hidden_RKD = jnp.take_along_axis(hidden_RTD, batch["places"][..., None], axis=1)  # no logits for the context
        nats_RK, hits_RK = next_token_nats_and_hits(params, config, hidden_RKD, batch["targets"])
        greedy_R = jnp.all(hits_RK | (batch["mask"] == 0), axis=1)
        return -jnp.sum(nats_RK * batch["mask"], axis=1), greedy_R, batch["index"], batch["weights"]

    def score(params: Any, batches: Iterable[Batch]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for batch in batches:
            with jax.set_mesh(mesh):
                values, greedy, index, weights = map(np.asarray, outcomes(params, batch))
            yield index[weights > 0], values[weights > 0], greedy[weights > 0]

    return score
