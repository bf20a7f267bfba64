"""What fine-tuning puts on top of a decoder: one linear layer on the state of the extract symbol (GPT-1, §3.2, §3.3).

Shape suffixes as in layers.py; S: the token sequences of one example (1; 2 orders of a similarity pair; k answers),
O: outputs of the head.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from gpt_jax.models.config import ModelConfig
from gpt_jax.models.layers import dropout, linear
from gpt_jax.models.parameters import ParameterSpec
from gpt_jax.parallel.rules import constrain

# How the sequences of an example become one prediction: `single`: there is one; `sum`: their states are added;
# `choice`: each gets one score, and the scores compete.
Combination = Literal["single", "sum", "choice"]


def head_specs(config: ModelConfig, outputs: int, std: float | None = None) -> dict:
    """Shapes and initializers: kernel [D, O] N(0, `std`), by default the model's init_std; bias 0."""
    std = config.init_std if std is None else std
    return {"kernel": ParameterSpec((config.embed_dim, outputs), std), "bias": ParameterSpec((outputs,))}


def head_logits(
    hidden_NTD: jax.Array,
    extract_positions_BS: jax.Array,
    sequence_mask_BS: jax.Array,
    params: dict,
    combination: Combination,
    *,
    dropout_rate: float = 0.0,
    key: jax.Array | None = None,
) -> jax.Array:
    """Scores of an example's labels [B, O], or of its choices [B, S]; float32 (or wider).

    The state is read at each sequence's extract symbol. One dropout mask serves all the sequences of an example, as in
    OpenAI's code, so that equal choices get equal scores.

    Args:
      hidden_NTD: the decoder's last states of the B · S sequences.
      sequence_mask_BS: 1 where an example has a sequence; choices that do not exist get the score -inf (finite).
    """
    batch, sequences = extract_positions_BS.shape
    states_ND = hidden_NTD[jnp.arange(batch * sequences), extract_positions_BS.reshape(-1)]
    wide = jnp.promote_types(hidden_NTD.dtype, jnp.float32)
    states_BSD = constrain(states_ND.reshape(batch, sequences, -1).astype(wide), "batch", None, None)
    if combination == "sum":
        states_BSD = jnp.sum(states_BSD, axis=1, keepdims=True)
    if key is not None and dropout_rate:
        keep_B1D = dropout(jnp.ones_like(states_BSD[:, :1]), dropout_rate, key)
        states_BSD = states_BSD * keep_B1D
    scores_BSO = linear(states_BSD, params)
    if combination != "choice":
        return scores_BSO[:, 0]
    return jnp.where(sequence_mask_BS > 0, scores_BSO[..., 0], jnp.finfo(wide).min)
