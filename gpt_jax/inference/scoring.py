"""How well a model predicts text: nats per token, bits per byte."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from gpt_jax.models import decoder
from gpt_jax.models.config import ModelConfig
from gpt_jax.models.likelihood import next_token_nats

Batch = dict[str, jax.Array]


def compile_scorer(
    config: ModelConfig, token_bytes: np.ndarray, mesh: jax.sharding.Mesh
) -> Callable[[Any, Iterable[Batch]], dict[str, float]]:
    """A function (parameters, batches) -> `loss` in nats per token and `bits_per_byte`, over every unmasked target.

    Args:
      token_bytes: int32 [V], how many bytes of UTF-8 each token spells; 0 for special symbols, whose nats count all
        the same.
    """

    def sums(params: Any, batch: Batch) -> jax.Array:
        hidden_BTD = decoder.hidden_states(params, config, batch["tokens"], segments_BT=batch.get("segments"))
        mask_BT = batch["loss_mask"]
        nats_BT = next_token_nats(params, config, hidden_BTD, batch["targets"]) * mask_BT
        bytes_BT = jnp.asarray(token_bytes, jnp.float32)[batch["targets"]] * mask_BT
        return jnp.stack([nats_BT.sum(), mask_BT.sum(), bytes_BT.sum()])

    jitted = jax.jit(sums, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def score(params: Any, batches: Iterable[Batch]) -> dict[str, float]:
        totals = np.zeros(3, np.float64)  # float32 sums of one batch, added up in float64
        with jax.set_mesh(mesh):
            for batch in batches:
                totals += np.asarray(jitted(params, batch), np.float64)
        nats, tokens, byte_count = totals.tolist()
        return {"loss": nats / tokens, "bits_per_byte": nats / math.log(2) / byte_count}

    return score
