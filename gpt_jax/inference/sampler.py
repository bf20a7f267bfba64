"""Continues texts, a token at a time."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from gpt_jax.models import decoder
from gpt_jax.models.config import ModelConfig


def compile_sampler(
    config: ModelConfig,
    mesh: jax.sharding.Mesh,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    vocab_size: int | None = None,
) -> Callable[[Any, Sequence[Sequence[int]], int], np.ndarray]:
    """A function (parameters, prompts as ids, seed) -> int32 [prompts, max_new_tokens] of new ids.

    Every prompt draws from a key of its own, so what it is continued with does not depend on the others. A prompt
    longer than the context leaves beside `max_new_tokens` keeps its last tokens.

    Args:
      temperature: the logits are divided by it; 0 takes the likeliest token.
      top_k: draws only among the k likeliest tokens; 0: among all.
      vocab_size: the tokenizer's, where the model has more rows than that to round their number up; none is drawn.
    """

    def next_ids(logits_BV: jax.Array, keys_B: jax.Array) -> jax.Array:
        logits_BV = logits_BV[:, :vocab_size]
        if temperature == 0:
            return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
        logits_BV = logits_BV.astype(jnp.float32) / temperature
        if 0 < top_k < logits_BV.shape[-1]:
            kth_B1 = jax.lax.top_k(logits_BV, top_k)[0][:, -1:]
            logits_BV = jnp.where(logits_BV < kth_B1, -jnp.inf, logits_BV)
        return jax.vmap(jax.random.categorical)(keys_B, logits_BV).astype(jnp.int32)

    @functools.partial(jax.jit, out_shardings=NamedSharding(mesh, PartitionSpec()))
    def continue_all(params: Any, tokens_BT: jax.Array, lengths_B: jax.Array, seed: jax.Array) -> jax.Array:
        rows = jnp.arange(tokens_BT.shape[0])
        row_keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), rows)

        def add_token(i, tokens_BT):
            # Prompts stand at the left, what lies to the right of a row's end cannot be seen by it (causality).
            hidden_BTD = decoder.hidden_states(params, config, tokens_BT)
            last_B1D = hidden_BTD[rows, lengths_B + i - 1][:, None]
            logits_BV = decoder.unembed(last_B1D, decoder.output_matrix(params, config))[:, 0]
            ids_B = next_ids(logits_BV, jax.vmap(jax.random.fold_in, (0, None))(row_keys, i))
            return tokens_BT.at[rows, lengths_B + i].set(ids_B)

        tokens_BT = jax.lax.fori_loop(0, max_new_tokens, add_token, tokens_BT)
        new = lengths_B[:, None] + jnp.arange(max_new_tokens)
        return jnp.take_along_axis(tokens_BT, new, axis=1)

    room = config.context_length - max_new_tokens
    if room < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens} leaves no room in a context of {config.context_length}.")

    def sample(params: Any, prompts: Sequence[Sequence[int]], seed: int) -> np.ndarray:
        if not all(len(prompt) for prompt in prompts):
            raise ValueError("an empty prompt: give at least one id, such as end_of_text.")
        prompts = [list(prompt)[-room:] for prompt in prompts]
        lengths = np.array([len(prompt) for prompt in prompts], np.int32)
        tokens = np.zeros((len(prompts), lengths.max() + max_new_tokens), np.int32)
        for row, prompt in zip(tokens, prompts, strict=True):
            row[: len(prompt)] = prompt
        with jax.set_mesh(mesh):
            return np.asarray(continue_all(params, tokens, lengths, np.uint32(seed)))

    return sample
