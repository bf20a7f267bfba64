"""PPO's part in a policy-gradient iteration: what a minibatch learns from, and what it minimises.

(Schulman et al. 2017; of language models Ziegler et al. 2019, Ouyang et al. 2022.) Shape suffixes as in policy.py; a
minibatch is a dict of what a rollout left: `policy.Batch`, `scores` [B] and, [B, R] each, `log_probs`,
`reference_log_probs` and `values` of the policy that drew the answers.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax.alignment.advantages import generalized_advantages, whiten
from gpt_jax.alignment.group_advantages import token_weights
from gpt_jax.alignment.kl import penalised_rewards
from gpt_jax.alignment.policy import Batch, Policy
from gpt_jax.alignment.policy_losses import explained_variance, policy_losses, policy_metrics, value_losses
from gpt_jax.models import decoder
from gpt_jax.models.likelihood import weighted_nats


@dataclasses.dataclass(frozen=True)
class PPO:
    """The objective.

    Attributes:
      clip, value_clip: see policy_losses.py; value_coefficient: what the value loss counts beside the policy's.
      discount, decay: see advantages.py.
      whiten_rewards: divide a minibatch's rewards by their standard deviation, their mean left as it is.
      whiten_advantages: give a minibatch's advantages mean 0 and variance 1.
      pretraining_coefficient: γ, what the language model's loss on text counts (PPO-ptx); 0: there is no text.
    """

    clip: float = 0.2
    value_clip: float = 0.2
    value_coefficient: float = 0.1
    discount: float = 1.0
    decay: float = 0.95
    whiten_rewards: bool = True
    whiten_advantages: bool = True
    pretraining_coefficient: float = 0.0

    def credit(self, scores_B: np.ndarray) -> dict[str, np.ndarray]:
        """What the scores of a whole rollout add to it: themselves."""
        return {"scores": scores_B}

    def prepare(self, minibatch: Batch, coefficient: jax.Array) -> tuple[Batch, dict[str, jax.Array]]:
        """What `loss` takes, and `explained_variance` and mean `returns` of the minibatch.

        Args:
          coefficient: β of the KL penalty.
        """
        mask_BR = minibatch["mask"]
        rewards_BR = penalised_rewards(
            minibatch["scores"], minibatch["log_probs"], minibatch["reference_log_probs"], mask_BR, coefficient
        )
        if self.whiten_rewards:
            rewards_BR = whiten(rewards_BR, mask_BR, shift_mean=False)
        advantages_BR, returns_BR = generalized_advantages(
            rewards_BR, minibatch["values"], mask_BR, discount=self.discount, decay=self.decay
        )
        explained = explained_variance(minibatch["values"], returns_BR, mask_BR)
        weights_BR = token_weights(mask_BR, "tokens")
        told = {
            "explained_variance": jnp.where(jnp.isfinite(explained), explained, 0),  # returns that are all equal
            "returns": jnp.sum(weights_BR * returns_BR),
        }
        if self.whiten_advantages:
            advantages_BR = whiten(advantages_BR, mask_BR)
        kept = {name: minibatch[name] for name in ("tokens", "targets", "mask", "starts", "log_probs", "values")}
        return kept | {"advantages": advantages_BR, "returns": returns_BR, "weights": weights_BR}, told

    def loss(self, policy: Policy, params: dict, batch: Batch, share: float) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss of a part of a minibatch, and what `train_step` makes metrics of.

        The weights of a minibatch's tokens sum up to 1, so that its parts' losses add up to its mean.

        Args:
          batch: of `prepare`; `pretraining`: text, a batch of windows whose `loss_mask` is its share of the minibatch.
          share: of the part's rows in the minibatch's.
        """
        found, weights_BR = policy.judged(params, batch), batch["weights"]
        losses_BR = policy_losses(found["log_probs"], batch["log_probs"], batch["advantages"], clip=self.clip)
        policy_loss = jnp.sum(weights_BR * losses_BR)
        losses_BR = value_losses(found["values"], batch["values"], batch["returns"], clip=self.value_clip)
        value_loss = jnp.sum(weights_BR * losses_BR)
        loss = policy_loss + self.value_coefficient * value_loss
        told = policy_metrics(found["log_probs"], batch["log_probs"], batch["mask"], clip=self.clip)
        told = {name: value * jnp.sum(weights_BR) for name, value in told.items()}
        told |= {"policy_loss": policy_loss, "value_loss": value_loss, "weight": jnp.float32(share)}
        if self.pretraining_coefficient:
            nats = pretraining_nats(policy, params, batch["pretraining"])
            loss += self.pretraining_coefficient * nats
            told["pretraining_loss"] = nats
        return loss, told


def pretraining_nats(policy: Policy, params: dict, text: Batch) -> jax.Array:
    """Σ `loss_mask` · nats of text, at temperature 1: what keeps the policy a language model (Ouyang et al. 2022)."""
    model = policy.decoder(params)
    hidden_BTD = decoder.hidden_states(model, policy.config, text["tokens"])
    return weighted_nats(model, policy.config, hidden_BTD, text["targets"], text["loss_mask"])
