"""How likely a prompt itself is, token by token: what an echo with log-probabilities tells."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax.inference.engine import Engine
from gpt_jax.models import decoder, incremental
from gpt_jax.models.config import ModelConfig

CHUNK = 256  # tokens whose scores of the whole vocabulary stand in memory together


def prompt_logprobs(
    engine: Engine, ids: Sequence[int], *, alternatives: int = 0
) -> list[tuple[float, list[tuple[int, float]]]]:
    """Of each token but the first: (its log-probability in nats, [(id, log-probability) of the likeliest there]).

    Args:
      ids: at most `engine.length` of them; alternatives: how many of the likeliest.
    """
    config = engine.config
    tokens = np.array(ids, np.int32)
    time = min(CHUNK, config.context_length)
    told = []
    with jax.set_mesh(engine.mesh):
        cache = _empty(config, min(incremental.power_of_two(len(tokens), 1), config.context_length))
        for start in range(0, len(tokens) - 1, time):
            chunk = tokens[start : start + time + 1]
            given_BT, next_BT = np.zeros((2, 1, time), np.int32)
            given_BT[0, : len(chunk) - 1], next_BT[0, : len(chunk) - 1] = chunk[:-1], chunk[1:]
            place = np.array([start], np.int32), np.array([len(chunk) - 1], np.int32)
            cache, *found = _advance(
                engine.params,
                given_BT,
                next_BT,
                cache,
                *place,
                config=config,
                size=(engine.vocabulary.size, alternatives),
            )
            logprobs_T, likeliest_TA, likeliest_ids_TA = (np.asarray(x)[0, : len(chunk) - 1] for x in found)
            told += [
                (logprob, list(zip(ids_A, logprobs_A, strict=True)))
                for logprob, ids_A, logprobs_A in zip(
                    logprobs_T.tolist(), likeliest_ids_TA.tolist(), likeliest_TA.tolist(), strict=True
                )
            ]
    return told


@functools.partial(jax.jit, static_argnames=("config", "length"))
def _empty(config: ModelConfig, length: int) -> incremental.Cache:
    return incremental.empty_cache(config, 1, length)


@functools.partial(jax.jit, static_argnames=("config", "size"), donate_argnames="cache")
def _advance(params, tokens_BT, next_BT, cache, starts_B, lengths_B, *, config: ModelConfig, size: tuple[int, int]):
    """The cache behind some more tokens, and what it says of those that follow them."""
    vocab_size, alternatives = size
    hidden_BTD, cache = incremental.advance(params, config, tokens_BT, cache, starts_B, lengths_B)
    logits_BTV = decoder.unembed(hidden_BTD, decoder.output_matrix(params, config))[..., :vocab_size]
    logprobs_BTV = jax.nn.log_softmax(logits_BTV.astype(jnp.promote_types(logits_BTV.dtype, jnp.float32)))
    told_BT = jnp.take_along_axis(logprobs_BTV, next_BT[..., None], axis=-1)[..., 0]
    likeliest_BTA, likeliest_ids_BTA = jax.lax.top_k(logprobs_BTV, alternatives)
    return cache, told_BT, likeliest_BTA, likeliest_ids_BTA
