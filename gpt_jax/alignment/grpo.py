"""GRPO's part in a policy-gradient iteration: what a minibatch learns from, and what it minimises.

(Shao et al. 2024.) As ppo.py, without a value function: a minibatch has the `advantages` [B] of whole answers, which
the other answers to the same prompt decide.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax.alignment.group_advantages import Normalisation, group_advantages, token_weights
from gpt_jax.alignment.kl import token_kl
from gpt_jax.alignment.policy import Batch, Policy
from gpt_jax.alignment.policy_losses import policy_losses, policy_metrics


@dataclasses.dataclass(frozen=True)
class GRPO:
    """The objective.

    Attributes:
      answers: K, to each prompt.
      clip: of the ratios; beta: what the KL from the reference costs, inside the loss (k3).
      normalisation, scale: see group_advantages.py.
    """

    answers: int = 8
    clip: float = 0.2
    beta: float = 0.04
    normalisation: Normalisation = "grpo"
    scale: bool = True

    def credit(self, scores_B: np.ndarray) -> dict[str, np.ndarray]:
        """What the scores of a whole rollout add to it, `advantages`; the answers to one prompt stand together."""
        scores_GK = jnp.asarray(scores_B).reshape(-1, self.answers)
        advantages_GK = group_advantages(scores_GK, jnp.ones_like(scores_GK), scale=self.scale)
        return {"advantages": np.asarray(advantages_GK).reshape(-1)}

    def prepare(self, minibatch: Batch, coefficient: jax.Array) -> tuple[Batch, dict[str, jax.Array]]:
        """What `loss` takes; there is nothing to tell. `coefficient` is PPO's."""
        mask_BR = minibatch["mask"]
        names = ("tokens", "targets", "mask", "starts", "log_probs", "reference_log_probs")
        return {name: minibatch[name] for name in names} | {
            "advantages": jnp.broadcast_to(minibatch["advantages"][:, None], mask_BR.shape),
            "weights": token_weights(mask_BR, self.normalisation, mask_BR.shape[1]),
            "shares": token_weights(mask_BR, "tokens"),
        }, {}

    def loss(self, policy: Policy, params: dict, batch: Batch, share: float) -> tuple[jax.Array, dict[str, jax.Array]]:
        """As `PPO.loss`."""
        log_probs_BR = policy.judged(params, batch)["log_probs"]
        losses_BR = policy_losses(log_probs_BR, batch["log_probs"], batch["advantages"], clip=self.clip)
        policy_loss = jnp.sum(batch["weights"] * losses_BR)
        kl_BR = token_kl(log_probs_BR, batch["reference_log_probs"], "k3")
        kl = jnp.sum(jnp.where(batch["mask"], batch["weights"] * kl_BR, 0))
        told = policy_metrics(log_probs_BR, batch["log_probs"], batch["mask"], clip=self.clip)
        told = {name: value * jnp.sum(batch["shares"]) for name, value in told.items()}
        told |= {"policy_loss": policy_loss, "kl_loss": kl, "weight": jnp.float32(share)}
        return policy_loss + self.beta * kl, told
