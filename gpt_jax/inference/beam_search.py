"""Beam search: the likeliest continuation that a few parallel guesses find (Sutskever et al. 2014, section 3.2)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax.errors import UserError
from gpt_jax.inference.engine import Engine, Vocabulary
from gpt_jax.models import decoder, incremental
from gpt_jax.models.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Beam:
    """One continuation.

    Attributes:
      ids: without the end of text.
      score: the sum of the tokens' log-probabilities (nats), the end included, over their number to the power of the
        length penalty.
      ended: whether the model ended it; else there was no room for more.
    """

    ids: list[int]
    score: float
    ended: bool


def check_beams(beams: int, vocabulary_size: int, ends: int) -> int:
    """How many extensions a step has to look at for `beams` open texts, `ends` being the tokens that end one.

    Raises:
      UserError: the vocabulary has fewer.
    """
    candidates = max(2, 1 + ends) * beams
    if candidates > vocabulary_size:
        most = vocabulary_size // max(2, 1 + ends)
        raise UserError(f"beams={beams}: a vocabulary of {vocabulary_size:,} tokens has enough for at most {most:,}.")
    return candidates


def beam_search(
    engine: Engine, prompt: list[int], *, beams: int, max_new_tokens: int, length_penalty: float = 1.0
) -> list[Beam]:
    """The `beams` best continuations that were found, the best first.

    Each step extends the `beams` likeliest texts by their likeliest tokens. A text that ends among the best `beams` of
    these is put aside with its score; the search is over once the likeliest text still open, scored at its present
    length, is worse than the worst of `beams` texts put aside. As transformers' `generate(num_beams=...)` does it.

    Args:
      length_penalty: above 0 it favours longer texts; GPT-3 took 4 beams and 0.6 (Brown et al. 2020, section 2.4).

    Raises:
      UserError: when the prompt is empty or leaves no room, or there is no beam.
    """
    if beams < 1 or max_new_tokens < 1:
        raise UserError(f"beams={beams}, max_new_tokens={max_new_tokens}: expected at least 1 of each.")
    engine.check_prompt(prompt, max_new_tokens)
    config, vocabulary = engine.config, engine.vocabulary
    candidates = check_beams(beams, vocabulary.size, len(vocabulary.ends))
    with jax.set_mesh(engine.mesh):
        length = min(incremental.power_of_two(len(prompt) + max_new_tokens, 64), engine.length)
        cache = _beams_of(engine.prefilled(prompt[:-1]), config=config, beams=beams, length=length)
        texts: list[list[int]] = [[] for _ in range(beams)]
        scores = np.full(beams, -np.inf, np.float32)
        scores[0] = 0.0  # all begin alike, so only one may be extended
        last, parents = np.full(beams, prompt[-1], np.int32), np.arange(beams, dtype=np.int32)
        done: list[Beam] = []
        for made in range(1, max_new_tokens + 1):
            start = np.int32(len(prompt) - 2 + made)
            cache, best, places = _extend(
                engine.params, cache, last, parents, scores, start,
                config=config, vocabulary=vocabulary, candidates=candidates,
            )  # fmt: skip
            best, (origins, ids) = np.asarray(best), np.divmod(np.asarray(places), config.vocab_size)
            ends = np.isin(ids, vocabulary.ends)
            closing = ends | (made == max_new_tokens)
            for rank in np.flatnonzero(closing[:beams] & (best[:beams] > -np.inf)):
                text = texts[origins[rank]] + ([] if ends[rank] else [int(ids[rank])])
                done.append(Beam(text, float(best[rank]) / made**length_penalty, bool(ends[rank])))
            done = sorted(done, key=lambda beam: -beam.score)[:beams]
            if made == max_new_tokens:
                break
            going_on = np.flatnonzero(~closing)[:beams]
            texts = [[*texts[origins[rank]], int(ids[rank])] for rank in going_on]
            last, parents, scores = ids[going_on].astype(np.int32), origins[going_on].astype(np.int32), best[going_on]
            if len(done) == beams and scores[0] / made**length_penalty <= done[-1].score:
                break
    return done


@functools.partial(jax.jit, static_argnames=("config", "beams", "length"))
def _beams_of(cache: incremental.Cache, *, config: ModelConfig, beams: int, length: int) -> incremental.Cache:
    """A cache of one row as one of `beams` equal rows."""
    return incremental.resized(cache, config, jnp.zeros(beams, jnp.int32), length)


@functools.partial(jax.jit, static_argnames=("config", "vocabulary", "candidates"), donate_argnames="cache")
def _extend(
    params: dict,
    cache: incremental.Cache,
    last_B: jax.Array,
    parents_B: jax.Array,
    scores_B: jax.Array,
    start: jax.Array,
    *,
    config: ModelConfig,
    vocabulary: Vocabulary,
    candidates: int,
) -> tuple[incremental.Cache, jax.Array, jax.Array]:
    """The best extensions of all beams: the cache, their scores [candidates], and beam * V + id of each."""
    cache = jax.tree.map(lambda x: x[parents_B], cache)
    beams = len(last_B)
    hidden_B1D, cache = incremental.advance(
        params, config, last_B[:, None], cache, jnp.full(beams, start), jnp.ones(beams, jnp.int32)
    )
    logits_BV = decoder.unembed(hidden_B1D, decoder.output_matrix(params, config))[:, 0]
    logits_BV = logits_BV.astype(jnp.promote_types(logits_BV.dtype, jnp.float32))
    logits_BV = jnp.where(jnp.arange(config.vocab_size) < vocabulary.size, logits_BV, -jnp.inf)
    extended_BV = jax.nn.log_softmax(logits_BV) + scores_B[:, None]
    return cache, *jax.lax.top_k(extended_BV.reshape(-1), candidates)
