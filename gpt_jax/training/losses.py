"""Training objectives. Shape suffixes as in models/layers.py and models/heads.py."""

from typing import Literal

import jax
import jax.numpy as jnp

from gpt_jax.models import decoder
from gpt_jax.models.config import ModelConfig
from gpt_jax.models.heads import Combination, head_logits
from gpt_jax.models.likelihood import cross_entropy, weighted_nats

# What the head's outputs mean. `classes`: labels or choices, cross-entropy; `score`: one number, squared error;
# `score_distribution`: a distribution over whole scores (Tai et al. 2015, §4.2), cross-entropy to soft targets.
Target = Literal["classes", "score", "score_distribution"]


def language_model_loss(
    params: dict, config: ModelConfig, batch: dict[str, jax.Array], key: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Summed nats of a batch's targets, and their number; GPT-1's L1 (paper, equation 1).

    Args:
      batch: `tokens` and `targets` int32 [B, T], `loss_mask` float32 [B, T]; `segments` int32 [B, T] where several
        texts share a row (see `hidden_states`).
      key: dropout key; None switches dropout off.
    """
    params = decoder.drop_embeddings(params, config, key)
    hidden_BTD = decoder.hidden_states(params, config, batch["tokens"], key, batch.get("segments"))
    nats = weighted_nats(params, config, hidden_BTD, batch["targets"], batch["loss_mask"])
    return nats, jnp.sum(batch["loss_mask"])


def fine_tuning_loss(
    params: dict,
    config: ModelConfig,
    batch: dict[str, jax.Array],
    key: jax.Array | None = None,
    *,
    combination: Combination,
    target: Target,
    language_model_weight: float,
    classifier_dropout: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """L3 = L2 + λ · L1 (GPT-1, equation 5), summed over the examples of a batch, and their number.

    L1 is a mean over the targets of each sequence first, then over the sequences of an example, as in OpenAI's code: a
    long sequence counts as much as a short one.

    Args:
      params: `model`, a decoder's parameters, and `head`.
      batch: `tokens`, `targets` int32 and `loss_mask` float32 [B, S, T]; `extract_positions` int32 and `sequence_mask`
        float32 [B, S]; `labels` int32 [B] or `scores` float32 [B] or [B, O]; `weights` float32 [B].
      language_model_weight: λ; 0 leaves the language model out.
    """
    model_key, head_key = (None, None) if key is None else jax.random.split(key)
    model = decoder.drop_embeddings(params["model"], config, model_key)
    flat = {name: batch[name].reshape(-1, batch[name].shape[-1]) for name in ("tokens", "targets", "loss_mask")}
    hidden_NTD = decoder.hidden_states(model, config, flat["tokens"], model_key)
    logits = head_logits(
        hidden_NTD, batch["extract_positions"], batch["sequence_mask"], params["head"], combination,
        dropout_rate=classifier_dropout, key=head_key,
    )  # fmt: skip
    weights_B = batch["weights"]
    loss = jnp.sum(weights_B * prediction_loss(logits, batch, target))
    if language_model_weight:
        mask_BS = batch["sequence_mask"]
        shares_BS = weights_B[:, None] * mask_BS / jnp.maximum(jnp.sum(mask_BS, axis=1, keepdims=True), 1)
        lengths_N1 = jnp.maximum(jnp.sum(flat["loss_mask"], axis=1, keepdims=True), 1)
        weights_NT = flat["loss_mask"] / lengths_N1 * shares_BS.reshape(-1, 1)
        loss += language_model_weight * weighted_nats(model, config, hidden_NTD, flat["targets"], weights_NT)
    return loss, jnp.sum(weights_B)


def prediction_loss(logits_BO: jax.Array, batch: dict[str, jax.Array], target: Target) -> jax.Array:
    """L2 of each example, [B]."""
    match target:
        case "classes":
            return cross_entropy(logits_BO, batch["labels"])
        case "score":
            return jnp.square(logits_BO[:, 0] - batch["scores"])
        case "score_distribution":
            return -jnp.sum(batch["scores"] * jax.nn.log_softmax(logits_BO), axis=-1)
    raise ValueError(target)
