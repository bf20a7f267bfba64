"""What a fine-tuned model says of examples: probabilities of labels or choices, or scores."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from gpt_jax.models import decoder
from gpt_jax.models.config import ModelConfig
from gpt_jax.models.heads import Combination, head_logits

Batch = dict[str, jax.Array]


def compile_predictor(
    config: ModelConfig, mesh: jax.sharding.Mesh, combination: Combination, *, probabilities: bool = True
) -> Callable[[Any, Iterable[Batch], int], np.ndarray]:
    """A function (parameters, batches, number of examples) -> float32 [n, O], in the order of the examples.

    Args:
      probabilities: a softmax over the head's outputs (or an example's choices); else the outputs themselves.

    The batches are those of `fine_tuning_loss`, with `index`: which example each row is; rows of weight 0 are fillers.
    """

    def predict(params: Any, batch: Batch) -> jax.Array:
        tokens_NT = batch["tokens"].reshape(-1, batch["tokens"].shape[-1])
        hidden_NTD = decoder.hidden_states(params["model"], config, tokens_NT)
        logits = head_logits(
            hidden_NTD, batch["extract_positions"], batch["sequence_mask"], params["head"], combination
        )
        return jax.nn.softmax(logits) if probabilities else logits

    replicated = NamedSharding(mesh, PartitionSpec())
    jitted = jax.jit(
        lambda params, batch: (predict(params, batch), batch["index"], batch["weights"]), out_shardings=replicated
    )

    def predict_all(params: Any, batches: Iterable[Batch], count: int) -> np.ndarray:
        found: dict[int, np.ndarray] = {}
        with jax.set_mesh(mesh):
            for batch in batches:
                for row, index, weight in zip(*map(np.asarray, jitted(params, batch)), strict=True):
                    if weight:
                        found[int(index)] = row
        missing = [index for index in range(count) if index not in found]
        if missing:
            raise ValueError(f"the batches lack {len(missing)} of {count} examples, {missing[0]} the first.")
        return np.stack([found[index] for index in range(count)]).astype(np.float32)

    return predict_all
