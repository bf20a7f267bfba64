"""What a step of a reward model or of DPO minimises, of a batch of prompts with their ranked answers.

A batch is what `data.ranked_batches.RankedSet` makes. Shape suffixes as in comparisons.py; T: positions.
"""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp

from gpt_jax.alignment.comparisons import comparison_losses, mean_over_pairs
from gpt_jax.alignment.preferences import PairLogProbs, dpo_losses, ipo_losses
from gpt_jax.models import decoder
from gpt_jax.models.config import ModelConfig
from gpt_jax.models.heads import head_logits, head_specs
from gpt_jax.models.likelihood import next_token_nats

Batch = dict[str, jax.Array]
PreferenceLoss = Literal["sigmoid", "ipo"]


def reward_head_specs(config: ModelConfig) -> dict:
    """One output, its kernel N(0, 1 / √(D + 1)): rewards of variance about 1 (Stiennon et al. 2020)."""
    return head_specs(config, 1, 1 / math.sqrt(config.embed_dim + 1))


def answer_rewards(params: dict, config: ModelConfig, batch: Batch, key: jax.Array | None = None) -> jax.Array:
    """The reward of every answer, read at its last token, [G, K] float32 (or wider).

    Args:
      params: `model`, a decoder's parameters, and `head`; key: dropout key, None switches dropout off.
    """
    model = decoder.drop_embeddings(params["model"], config, key)
    hidden_NTD = _hidden_states(model, config, batch, key)
    return head_logits(hidden_NTD, batch["extract_positions"], batch["sequence_mask"], params["head"], "choice")


def reward_loss(
    params: dict, config: ModelConfig, batch: Batch, key: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """`comparison_losses` summed over the prompts of a batch, and their number."""
    losses_G, _ = comparison_losses(answer_rewards(params, config, batch, key), batch["ranks"], batch["sequence_mask"])
    return jnp.sum(batch["weights"] * losses_G), jnp.sum(batch["weights"])


def answer_log_likelihoods(params: dict, config: ModelConfig, batch: Batch, key: jax.Array | None = None) -> jax.Array:
    """The log-probability of every answer and its end, summed over its tokens, [G, K] in nats."""
    config = dataclasses.replace(config, positions_in_softmax=False)  # as it generates
    params = decoder.drop_embeddings(params, config, key)
    hidden_NTD = _hidden_states(params, config, batch, key)
    targets_NT = batch["targets"].reshape(hidden_NTD.shape[:2])
    nats_NT = next_token_nats(params, config, hidden_NTD, targets_NT)
    return -jnp.sum(nats_NT.reshape(batch["targets"].shape) * batch["loss_mask"], axis=-1)


def preference_loss(
    params: dict, config: ModelConfig, batch: Batch, key: jax.Array | None = None,
    *, kind: PreferenceLoss, beta: float, label_smoothing: float = 0.0,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """DPO's or IPO's loss, the mean over each prompt's pairs, summed over the prompts of a batch; and their number.

    All pairs of a prompt stand in one batch element, as in a reward model's; of two answers it is the papers' loss.

    Args:
      batch: `reference_log_probs` float32 [G, K] too, what `answer_log_likelihoods` of the reference model are.
      kind: `ipo` takes the mean of an answer's tokens instead of their sum, as TRL does.
    """
    policy_GK = answer_log_likelihoods(params, config, batch, key)
    losses_G = preference_losses(
        policy_GK, batch["reference_log_probs"], jnp.sum(batch["loss_mask"], axis=-1), batch["ranks"],
        batch["sequence_mask"], kind=kind, beta=beta, label_smoothing=label_smoothing,
    )  # fmt: skip
    return jnp.sum(batch["weights"] * losses_G), jnp.sum(batch["weights"])


def preference_losses(
    policy_GK: jax.Array, reference_GK: jax.Array, lengths_GK: jax.Array, ranks_GK: jax.Array, mask_GK: jax.Array,
    *, kind: PreferenceLoss, beta: float, label_smoothing: float = 0.0,
) -> jax.Array:  # fmt: skip
    """The loss of each prompt, [G], of its answers' log-probabilities and their lengths in tokens."""
    if kind == "ipo":
        policy_GK, reference_GK = (x_GK / jnp.maximum(lengths_GK, 1) for x_GK in (policy_GK, reference_GK))
    policy, reference = (PairLogProbs(x_GK[:, :, None], x_GK[:, None, :]) for x_GK in (policy_GK, reference_GK))
    match kind:
        case "sigmoid":
            losses_GKK = dpo_losses(policy, reference, beta=beta, label_smoothing=label_smoothing)
        case "ipo":
            losses_GKK = ipo_losses(policy, reference, beta=beta)
        case _:
            raise ValueError(kind)
    return mean_over_pairs(losses_GKK, ranks_GK, mask_GK)[0]


def _hidden_states(params: dict, config: ModelConfig, batch: Batch, key: jax.Array | None) -> jax.Array:
    """[N, T, D] of all answers."""
    tokens_NT = batch["tokens"].reshape(-1, batch["tokens"].shape[-1])
    return decoder.hidden_states(params, config, tokens_NT, key)
