"""Which token comes next: what a user asks of a draw, and the draw."""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax.errors import UserError

MOST_LOGPROBS = 20
RANKS = 256  # likeliest tokens that top_k and top_p are decided by; where they do not suffice, all are sorted


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How one prompt is continued.

    A token's logits pass, in this order: the repetition penalty, the temperature, top_k, top_p, min_p; what is left is
    drawn from.

    Attributes:
      temperature: the logits are divided by it; 0 takes the likeliest token.
      top_k: only the k likeliest tokens (and those as likely as the k-th); 0: all.
      top_p: only the likeliest tokens that together reach this probability (Holtzman et al. 2020).
      min_p: only tokens at least this fraction as likely as the likeliest (Nguyen et al. 2024).
      repetition_penalty: logits of tokens that the prompt or the continuation holds are divided by it where they are
        positive, else multiplied (Keskar et al. 2019).
      seed: of the draws; each draws from (seed, number of the sample, number of the token) alone.
      logprobs: also log-probabilities, of the token and of so many likeliest ones: of the model's own distribution,
        before all of the above. None: no log-probabilities.

    Raises:
      UserError: for a value out of its range, or one that another makes meaningless.
    """

    max_new_tokens: int = 64
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    logprobs: int | None = None

    def __post_init__(self):
        for name, least, most in (
            ("max_new_tokens", 1, 2**31 - 1),
            ("temperature", 0, math.inf),
            ("top_k", 0, 2**31 - 1),
            ("top_p", 0, 1),
            ("min_p", 0, 1),
            ("repetition_penalty", 0, math.inf),
            ("seed", 0, 2**32 - 1),
            ("logprobs", 0, MOST_LOGPROBS),
        ):
            value = getattr(self, name)
            if value is None and name == "logprobs":
                continue
            if not least <= value <= most or math.isinf(value):  # false for nan
                raise UserError(f"{name}={value}: expected {least} to {most}.")
        for name in ("top_p", "repetition_penalty"):
            if getattr(self, name) == 0:
                raise UserError(f"{name}=0 would leave no token; 1 switches it off.")
        if self.temperature == 0:
            idle = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
            if asked := [f"{name}={getattr(self, name)}" for name, off in idle.items() if getattr(self, name) != off]:
                raise UserError(
                    f"temperature=0 takes the likeliest token, so {', '.join(asked)} would do nothing. Set a "
                    "temperature above 0, or leave the others out."
                )


class Choosers(NamedTuple):
    """`Sampling` of each row, as arrays [B]: rows of one batch are drawn each in its own way by one program."""

    temperature: jax.Array  # float32, as are the next but top_k
    top_k: jax.Array  # int32
    top_p: jax.Array
    min_p: jax.Array
    repetition_penalty: jax.Array
    seed: jax.Array  # uint32
    sample: jax.Array  # uint32, the number of the continuation among those of one seed

    @classmethod
    def of(cls, sampling: Sampling, sample: int) -> "Choosers":
        """Of a single row."""
        values = (*(getattr(sampling, name) for name in cls._fields[:-1]), sample)
        dtypes = (np.float32, np.int32, np.float32, np.float32, np.float32, np.uint32, np.uint32)
        return cls(*(np.array([value], dtype) for value, dtype in zip(values, dtypes, strict=True)))


def choose(logits_BV: jax.Array, choosers: Choosers, numbers_B: jax.Array, seen_BV: jax.Array) -> jax.Array:
    """The next token of each row, int32 [B].

    Args:
      logits_BV: as the model gives them; -inf for ids that the tokenizer does not have.
      numbers_B: how many tokens the row has been given before.
      seen_BV: bool, tokens that the repetition penalty speaks of.
    """
    logits_BV = logits_BV.astype(jnp.promote_types(logits_BV.dtype, jnp.float32))
    penalty_B1 = choosers.repetition_penalty[:, None].astype(logits_BV.dtype)
    penalised_BV = jnp.where(logits_BV > 0, logits_BV / penalty_B1, logits_BV * penalty_B1)
    logits_BV = jnp.where(seen_BV, penalised_BV, logits_BV)
    likeliest_B = jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    drawing_B = choosers.temperature > 0

    def draw() -> jax.Array:
        temperature_B1 = jnp.where(drawing_B, choosers.temperature, 1)[:, None]
        kept_BV = _truncated(logits_BV / temperature_B1, choosers)
        drawn_B = jax.vmap(one_draw)(choosers.seed, choosers.sample, numbers_B, kept_BV)
        return jnp.where(drawing_B, drawn_B, likeliest_B)

    def one_draw(seed: jax.Array, sample: jax.Array, number: jax.Array, logits_V: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), sample), number)
        return jax.random.categorical(key, logits_V).astype(jnp.int32)

    return jax.lax.cond(jnp.any(drawing_B), draw, lambda: likeliest_B)


def _truncated(logits_BV: jax.Array, choosers: Choosers) -> jax.Array:
    """The logits with -inf in the place of tokens that top_k, top_p and min_p leave out."""
    limited_B = (choosers.top_k > 0) | (choosers.top_p < 1)

    def limit() -> jax.Array:
        ranks = min(RANKS, logits_BV.shape[-1])
        least_B1, found_B = _least_logits(jax.lax.top_k(logits_BV, ranks)[0], logits_BV, choosers)

        def sort_all() -> jax.Array:
            return _least_logits(jnp.sort(logits_BV, axis=-1, descending=True), logits_BV, choosers)[0]

        least_B1 = jax.lax.cond(jnp.all(found_B | ~limited_B), lambda: least_B1, sort_all)
        return jnp.where((logits_BV >= least_B1) | ~limited_B[:, None], logits_BV, -jnp.inf)

    logits_BV = jax.lax.cond(jnp.any(limited_B), limit, lambda: logits_BV)
    least_B1 = jnp.max(logits_BV, axis=-1, keepdims=True) + jnp.log(choosers.min_p)[:, None]
    return jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)


def _least_logits(ranked_BR: jax.Array, logits_BV: jax.Array, choosers: Choosers) -> tuple[jax.Array, jax.Array]:
    """The least logit that top_k and top_p keep, [B, 1], by the R largest; and where these are enough, bool [B]."""
    ranks = ranked_BR.shape[-1]
    by_count_B1 = ((choosers.top_k > 0) & (choosers.top_k <= ranks))[:, None]
    kth_B1 = jnp.take_along_axis(ranked_BR, jnp.clip(choosers.top_k, 1, ranks)[:, None] - 1, axis=-1)
    kth_B1 = jnp.where(by_count_B1, kth_B1, -jnp.inf)
    all_B1 = jax.nn.logsumexp(jnp.where(logits_BV >= kth_B1, logits_BV, -jnp.inf), axis=-1, keepdims=True)
    probabilities_BR = jnp.exp(ranked_BR - all_B1)
    likelier_BR = jnp.cumsum(probabilities_BR, axis=-1) - probabilities_BR  # the probability of all likelier ones
    top_p_B1 = choosers.top_p[:, None]
    kept_BR = (ranked_BR >= kth_B1) & ((likelier_BR < top_p_B1) | (top_p_B1 >= 1))
    least_B1 = jnp.min(jnp.where(kept_BR, ranked_BR, jnp.inf), axis=-1, keepdims=True)
    known_B = (choosers.top_k == 0) | (choosers.top_k <= ranks)
    found_B = by_count_B1[:, 0] | (known_B & ~kept_BR[:, -1])
    return least_B1, found_B
