"""The decoder on a text that grows: what earlier tokens left behind is kept, and only new ones are computed.

Rows of a batch stand at places of their own. A dense layer keeps the keys and values of all positions, a banded one
those of its band, in a ring; an LSTM keeps its state. Shape suffixes as in layers.py; W: slots of a ring.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gpt_jax.models import decoder, layers, lstm
from gpt_jax.models.attention import cached_attention, project_heads
from gpt_jax.models.config import ModelConfig
from gpt_jax.models.parameters import unstack
from gpt_jax.parallel.rules import constrain, path_string


class KeysAndValues(NamedTuple):
    """[B, K, S, H] each; position s stands in slot s, or in slot s mod W of a ring."""

    keys: jax.Array
    values: jax.Array


class LstmState(NamedTuple):
    """[B, U] each, before the next token."""

    state: jax.Array
    cell: jax.Array


Cache = list[Any]  # a KeysAndValues or LstmState of each layer


def split_layers(params: dict, config: ModelConfig) -> dict:
    """`params` with a list of layers in place of the stack, in the dtype in which they are multiplied.

    A slice of a stacked matrix would be copied for every token (on a CPU that takes thrice the time of the products).
    """

    def cast(path, x: jax.Array) -> jax.Array:
        return x if "norm" in path_string(path) else x.astype(config.dtype)

    params = jax.tree_util.tree_map_with_path(cast, params)
    return params | {"layers": unstack(params["layers"], config.num_layers)}


def empty_cache(config: ModelConfig, batch: int, length: int) -> Cache:
    """Room for `length` tokens of each of `batch` rows, zeros in the compute dtype (an LSTM's cell: float32)."""
    if config.core == "lstm":
        wide = jnp.promote_types(config.dtype, jnp.float32)
        zeros = LstmState(*(jnp.zeros((batch, config.lstm_width), dtype) for dtype in (config.dtype, wide)))
        return [zeros] * config.num_layers

    def zeros(window: int) -> KeysAndValues:
        shape = (batch, config.kv_heads, min(window or length, length), config.head_width)
        return KeysAndValues(*(_constrained(jnp.zeros(shape, config.dtype)) for _ in range(2)))

    return [zeros(window) for window in _windows(config)]


def resized(cache: Cache, config: ModelConfig, rows: jax.Array, length: int) -> Cache:
    """The same for other rows (int [new batch], of the old ones) and another length, which none of them exceeds."""
    if config.core == "lstm":
        return jax.tree.map(lambda x: x[rows], cache)

    def resize(x: jax.Array, window: int) -> jax.Array:
        # A ring of fewer slots than its window has not turned yet: position s still stands in slot s.
        slots = min(window or length, length)
        x = x[rows, :, :slots]
        return _constrained(jnp.pad(x, ((0, 0), (0, 0), (0, slots - x.shape[2]), (0, 0))))

    return [
        KeysAndValues(*(resize(x, window) for x in layer))
        for layer, window in zip(cache, _windows(config), strict=True)
    ]


def placed(cache: Cache, rows: jax.Array, new: Cache) -> Cache:
    """`cache` with `new`, a cache of as many rows or more and at most as long, in its rows `rows`.

    Rows beyond the batch are dropped.
    """

    def place(x: jax.Array, new: jax.Array) -> jax.Array:
        if x.ndim == 4:
            return _constrained(x.at[rows, :, : new.shape[2]].set(new, mode="drop"))
        return x.at[rows].set(new, mode="drop")

    return jax.tree.map(place, cache, new)


def advance(
    params: dict, config: ModelConfig, tokens_BT: jax.Array, cache: Cache, starts_B: jax.Array, lengths_B: jax.Array
) -> tuple[jax.Array, Cache]:
    """Hidden states of new tokens, and the cache with them in it.

    Args:
      params: of `split_layers`.
      tokens_BT: row b's new tokens, of which the first lengths_B[b] are real; the others leave no trace.
      starts_B: tokens that the cache holds already. A row's cache has to have room for both.

    Returns: [B, T, D] in the compute dtype, as `decoder.hidden_states`; and the cache.
    """
    time = tokens_BT.shape[1]
    positions_BT = starts_B[:, None] + jnp.arange(time)
    real_BT = jnp.arange(time) < lengths_B[:, None]
    x_BTD = decoder.embed(params, config, tokens_BT, positions_BT=positions_BT)
    new_cache = []
    for layer, window, kept in zip(params["layers"], _windows(config), cache, strict=True):
        layer = decoder.gather_kernels(layer, config)
        memory = _Memory(kept, positions_BT, real_BT)
        if config.core == "lstm":
            x_BTD = lstm.block(x_BTD, layer, config, states=memory.states)
        else:
            x_BTD = decoder.block(x_BTD, layer, config, window=window, attention=memory.attention)
        new_cache.append(memory.kept)
    x_BTD = layers.norm(x_BTD, params["final_norm"], config) if config.final_norm else x_BTD
    return x_BTD, new_cache


class _Memory:
    """What one layer keeps, while it runs; `kept` is replaced by what it keeps afterwards."""

    def __init__(self, kept: Any, positions_BT: jax.Array, real_BT: jax.Array):
        self.kept, self._positions_BT, self._real_BT = kept, positions_BT, real_BT

    def attention(self, x_BTD: jax.Array, params: dict, config: ModelConfig, key: None, *, window: int) -> jax.Array:
        """`self_attention` of new tokens to themselves and to what is kept."""
        batch, time, _ = x_BTD.shape
        q_BTNH, k_BTKH, v_BTKH = project_heads(x_BTD, params, config, self._positions_BT)
        new = KeysAndValues(jnp.swapaxes(k_BTKH, 1, 2), jnp.swapaxes(v_BTKH, 1, 2))
        step = self._ring if window else self._dense
        out_BTNH = step(q_BTNH, new, window)
        return layers.linear(out_BTNH.reshape(batch, time, -1), params["output"])

    def _dense(self, q_BTNH: jax.Array, new: KeysAndValues, _: int) -> jax.Array:
        self._write(new, self._positions_BT, self._real_BT)
        visible_BTS = jnp.arange(self.kept.keys.shape[2]) <= self._positions_BT[..., None]
        return cached_attention(q_BTNH, *self.kept, visible_BTS)

    def _ring(self, q_BTNH: jax.Array, new: KeysAndValues, window: int) -> jax.Array:
        # New keys would overwrite some that earlier new queries still see, so they are joined before they are written.
        slots, time = self.kept.keys.shape[2], q_BTNH.shape[1]
        before_B1 = self._positions_BT[:, :1] - 1
        kept_BS = before_B1 - (before_B1 - jnp.arange(slots)) % slots  # the last position that each slot was given
        positions_B1S = jnp.concatenate([kept_BS, self._positions_BT], axis=1)[:, None]
        distance_BTS = self._positions_BT[..., None] - positions_B1S
        visible_BTS = (positions_B1S >= 0) & (distance_BTS >= 0) & (distance_BTS < window)
        joined = jax.tree.map(lambda old, new: jnp.concatenate([old, new], axis=2), self.kept, new)
        out_BTNH = cached_attention(q_BTNH, *joined, visible_BTS)
        last_BT = self._real_BT & (jnp.arange(time) >= jnp.sum(self._real_BT, axis=1, keepdims=True) - slots)
        self._write(new, self._positions_BT % slots, last_BT)
        return out_BTNH

    def _write(self, new: KeysAndValues, slots_BT: jax.Array, written_BT: jax.Array) -> None:
        batch, heads, slots, _ = self.kept.keys.shape
        slots_B1T = jnp.where(written_BT, slots_BT, slots)[:, None]  # beyond the last slot: dropped
        places = jnp.arange(batch)[:, None, None], jnp.arange(heads)[:, None], slots_B1T
        self.kept = jax.tree.map(lambda x, y: _constrained(x.at[places].set(y, mode="drop")), self.kept, new)

    def states(self, x_BTD: jax.Array, params: dict) -> jax.Array:
        """`lstm.states_from_zero`, but from the state that is kept."""
        inputs_TBG = layers.linear(jnp.swapaxes(x_BTD, 0, 1), params["input"])
        kernel_UG = params["recurrent"]["kernel"].astype(x_BTD.dtype)

        def step(kept: LstmState, inputs: tuple[jax.Array, jax.Array]) -> tuple[LstmState, jax.Array]:
            inputs_BG, real_B = inputs
            new = LstmState(*lstm.one_step(inputs_BG, *kept, kernel_UG)[:2])
            kept = jax.tree.map(lambda old, new: jnp.where(real_B[:, None], new, old), kept, new)
            return kept, new.state

        self.kept, states_TBU = jax.lax.scan(step, self.kept, (inputs_TBG, self._real_BT.T))
        return jnp.swapaxes(states_TBU, 0, 1)


def power_of_two(number: int, least: int) -> int:
    """The first power of two that is neither below `number` nor below `least`, which is one."""
    return max(least, 1 << (number - 1).bit_length()) if number > 1 else least


@functools.cache
def _windows(config: ModelConfig) -> tuple[int, ...]:
    """Of each layer, the keys that a query sees; 0: all."""
    period = config.attention_windows
    return tuple(period[layer % len(period)] for layer in range(config.num_layers))


def _constrained(x_BKSH: jax.Array) -> jax.Array:
    return constrain(x_BKSH, "batch", "heads", None, None)
