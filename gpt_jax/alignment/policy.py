"""What a model says of answers, token by token: how likely it finds them, and how much reward it expects.

B: answers, T: positions of a prompt with its answer, R: tokens of an answer; further suffixes as in models/layers.py.
"""

import dataclasses

import jax
import jax.numpy as jnp

from gpt_jax.alignment.policy_losses import token_entropy
from gpt_jax.models import decoder
from gpt_jax.models.adapters import with_adapters
from gpt_jax.models.config import ModelConfig
from gpt_jax.models.layers import linear
from gpt_jax.models.likelihood import cross_entropy
from gpt_jax.parallel.rules import constrain

Batch = dict[str, jax.Array]  # tokens, targets, mask, starts: those of `rollouts.answer_arrays`


@dataclasses.dataclass(frozen=True)
class Policy:
    """The models of a policy-gradient run; their parameters are a tree of its own.

    `model`: a decoder's; beside it `adapters`, where it learns through them; `head`, a value head on its states; or
    `value`, a second decoder with a head, its `model` and `head`.

    Attributes:
      vocab_size: the tokenizer's; rows of the model beyond it are never drawn.
      temperature: answers are drawn at, and so judged by: the policy is the model at this temperature.
      adapters_alpha: see models/adapters.py.
      value_config: of `value`; None: there is none.
    """

    config: ModelConfig
    vocab_size: int
    temperature: float = 1.0
    adapters_alpha: float = 1.0
    value_config: ModelConfig | None = None

    def decoder(self, params: dict) -> dict:
        """The parameters that the policy computes with: the decoder's, with its adapters merged."""
        return with_adapters(params, self.adapters_alpha)["model"]

    def logits(self, model: dict, hidden_BRD: jax.Array) -> jax.Array:
        """[B, R, V] float32 (or wider), divided by the temperature; -inf for ids that the tokenizer does not have."""
        logits_BRV = decoder.unembed(hidden_BRD, decoder.output_matrix(model, self.config))
        logits_BRV = logits_BRV.astype(jnp.promote_types(logits_BRV.dtype, jnp.float32)) / self.temperature
        if self.vocab_size == self.config.vocab_size:
            return logits_BRV
        return jnp.where(jnp.arange(self.config.vocab_size) < self.vocab_size, logits_BRV, -jnp.inf)

    def reference_log_probs(self, model: dict, batch: Batch) -> jax.Array:
        """log π_ref of each token of the answers, [B, R] in nats, 0 behind them; `model`: the reference's decoder."""
        logits_BRV = self.logits(model, answer_states(model, self.config, batch))
        return jnp.where(batch["mask"], -cross_entropy(logits_BRV, batch["targets"]), 0)

    def judged(self, params: dict, batch: Batch) -> dict[str, jax.Array]:
        """`log_probs`, 0 behind the answers; `entropy`, without a gradient; of a value function `values`; [B, R] each.

        A value is what the state before the token promises, float32 (or wider).
        """
        model = self.decoder(params)
        hidden_BRD = answer_states(model, self.config, batch)
        logits_BRV = self.logits(model, hidden_BRD)
        found = {
            "log_probs": jnp.where(batch["mask"], -cross_entropy(logits_BRV, batch["targets"]), 0),
            "entropy": token_entropy(jax.lax.stop_gradient(logits_BRV)),
        }
        if "value" in params:
            own = params["value"]
            found["values"] = state_values(answer_states(own["model"], self.value_config, batch), own["head"])
        elif "head" in params:
            found["values"] = state_values(hidden_BRD, params["head"])
        return found


def answer_states(model: dict, config: ModelConfig, batch: Batch) -> jax.Array:
    """The decoder's last state before each token of the answers, [B, R, D]."""
    hidden_BTD = decoder.hidden_states(model, config, batch["tokens"])
    last = batch["tokens"].shape[1] - 1
    places_BR = jnp.minimum(batch["starts"][:, None] + jnp.arange(batch["targets"].shape[1]), last)
    return constrain(jnp.take_along_axis(hidden_BTD, places_BR[..., None], axis=1), "batch", None, None)


def state_values(hidden_BRD: jax.Array, head: dict) -> jax.Array:
    """A head of one output on each state, [B, R] float32 (or wider)."""
    return linear(hidden_BRD.astype(jnp.promote_types(hidden_BRD.dtype, jnp.float32)), head)[..., 0]
