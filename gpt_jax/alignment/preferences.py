"""Learning from pairs of answers without a reward model: DPO and IPO. P: pairs."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class PairLogProbs(NamedTuple):
    """Log-probabilities [P] of the answers of pairs: of whole answers for DPO, a token's mean for IPO."""

    chosen_P: jax.Array
    rejected_P: jax.Array


def answer_log_probs(log_probs_BT: jax.Array, mask_BT: jax.Array, *, mean: bool = False) -> jax.Array:
    """Log-probability of each answer, [B]: the sum over the tokens that the mask keeps, or their `mean`."""
    total_B = jnp.sum(jnp.where(mask_BT, log_probs_BT, 0), axis=1)
    return total_B / jnp.maximum(jnp.sum(mask_BT, axis=1), 1) if mean else total_B


def implicit_margins(policy: PairLogProbs, reference: PairLogProbs) -> jax.Array:
    """How much more than the reference the policy prefers the chosen answers, [P]; 0 at the first step."""
    return (policy.chosen_P - reference.chosen_P) - (policy.rejected_P - reference.rejected_P)


def dpo_losses(
    policy: PairLogProbs, reference: PairLogProbs, *, beta: float = 0.1, label_smoothing: float = 0.0
) -> jax.Array:
    """-log σ(β · margin) of each pair (Rafailov et al. 2023, equation 7), [P]; ln 2 at the first step.

    Args:
      label_smoothing: the share ε of pairs that are taken to be labelled the wrong way round, so that the loss is
        (1 - ε) of this and ε of that of the opposite (Mitchell 2023, "A note on DPO with noisy preferences").
    """
    logits_P = beta * implicit_margins(policy, reference)
    right_P, wrong_P = -jax.nn.log_sigmoid(logits_P), -jax.nn.log_sigmoid(-logits_P)
    return (1 - label_smoothing) * right_P + label_smoothing * wrong_P


def ipo_losses(policy: PairLogProbs, reference: PairLogProbs, *, beta: float = 0.1) -> jax.Array:
    """(margin - 1 / 2β)² of each pair (Azar et al. 2023, equation 17), [P].

    Long answers would have margins of their own size: give the mean log-probabilities of their tokens, as TRL does.
    """
    return jnp.square(implicit_margins(policy, reference) - 1 / (2 * beta))


def preference_metrics(policy: PairLogProbs, reference: PairLogProbs, *, beta: float = 0.1) -> dict[str, jax.Array]:
    """Scalars: `accuracy`, the share of pairs whose chosen answer has the higher implicit reward; `margin`, the mean of
    β times the margins; `reward_chosen` and `reward_rejected`, the means of β (log π - log π_ref)."""
    margins_P = implicit_margins(policy, reference)
    return {
        "accuracy": jnp.mean((margins_P > 0).astype(margins_P.dtype)),
        "margin": beta * jnp.mean(margins_P),
        "reward_chosen": beta * jnp.mean(policy.chosen_P - reference.chosen_P),
        "reward_rejected": beta * jnp.mean(policy.rejected_P - reference.rejected_P),
    }
