"""Training objectives. Shape suffixes as in models/layers.py."""

import jax
import jax.numpy as jnp

from gpt_jax.models import decoder
from gpt_jax.models.config import ModelConfig
from gpt_jax.models.likelihood import weighted_nats


def language_model_loss(
    params: dict, config: ModelConfig, batch: dict[str, jax.Array], key: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Summed nats of a batch's targets, and their number; GPT-1's L1 (paper, equation 1).

    Args:
      batch: `tokens` and `targets` int32 [B, T], `loss_mask` float32 [B, T].
      key: dropout key; None switches dropout off.
    """
    params = decoder.drop_embeddings(params, config, key)
    hidden_BTD = decoder.hidden_states(params, config, batch["tokens"], key)
    nats = weighted_nats(params, config, hidden_BTD, batch["targets"], batch["loss_mask"])
    return nats, jnp.sum(batch["loss_mask"])
