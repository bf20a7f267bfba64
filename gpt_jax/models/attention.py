"""Causal self-attention. Shape suffixes as in layers.py."""

import jax
import jax.numpy as jnp

from gpt_jax.models.config import ModelConfig
from gpt_jax.models.layers import dropout, linear, rotate
from gpt_jax.parallel.rules import constrain


def dot_product_attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    block: int = 0,
    dropout_rate: float = 0.0,
    key: jax.Array | None = None,
) -> jax.Array:
    """softmax(q kᵀ / √H) v under a causal mask, T = S; the reference that every other kernel is held to.

    Query t sees keys s ≤ t. Scores and softmax in float32 (or wider); dropout on the weights. Query heads are in
    groups of N/K, each group with one key/value head.

    Args:
      block: queries worked off together; each block computes the scores of the keys up to its own end only, which
        saves almost half of them. 0: all in one.

    Returns: [B, T, N, H] in q's dtype.
    """
    batch, time, heads, width = q_BTNH.shape
    kv_heads = k_BSKH.shape[2]
    q_BTKGH = q_BTNH.reshape(batch, time, kv_heads, heads // kv_heads, width)
    block = block if 0 < block < time else time
    outputs = []
    for start in range(0, time, block):
        stop = min(start + block, time)
        block_key = None if key is None else jax.random.fold_in(key, start)
        outputs.append(
            _attend(q_BTKGH[:, start:stop], k_BSKH[:, :stop], v_BSKH[:, :stop], start, dropout_rate, block_key)
        )
    return jnp.concatenate(outputs, axis=1).reshape(batch, time, heads, width)


def _attend(q_BTKGH, k_BSKH, v_BSKH, start, dropout_rate, key):
    """Attention of the queries at positions `start`, `start` + 1, ... to all the keys given."""
    time, keys, width = q_BTKGH.shape[1], k_BSKH.shape[1], q_BTKGH.shape[-1]
    wide = jnp.promote_types(q_BTKGH.dtype, jnp.float32)
    scores_BKGTS = jnp.einsum("btkgh,bskh->bkgts", q_BTKGH, k_BSKH, preferred_element_type=wide) * width**-0.5
    visible_TS = jnp.arange(keys) <= start + jnp.arange(time)[:, None]
    # Masked scores are replaced, not lowered by a sum: finfo.min stays finite where -1e9 overflows (float16).
    scores_BKGTS = jnp.where(visible_TS, scores_BKGTS, jnp.finfo(wide).min)
    weights_BKGTS = jax.nn.softmax(scores_BKGTS, axis=-1).astype(q_BTKGH.dtype)
    weights_BKGTS = dropout(weights_BKGTS, dropout_rate, key)
    return jnp.einsum("bkgts,bskh->btkgh", weights_BKGTS, v_BSKH)


def self_attention(x_BTD: jax.Array, params: dict, config: ModelConfig, key: jax.Array | None) -> jax.Array:
    """Multi-head (or grouped-query) causal self-attention of one layer, its output projection included."""
    batch, time, _ = x_BTD.shape

    def project(name: str, heads: int) -> jax.Array:
        y = linear(x_BTD, params[name]).reshape(batch, time, heads, config.head_width)
        return constrain(y, "batch", "time", "heads", None)

    q_BTNH = project("query", config.num_heads)
    k_BTKH = project("key", config.kv_heads)
    v_BTKH = project("value", config.kv_heads)
    if config.positions == "rotary":
        positions_T = jnp.arange(time)
        q_BTNH = rotate(q_BTNH, positions_T, config.rope_theta)
        k_BTKH = rotate(k_BTKH, positions_T, config.rope_theta)
    out_BTNH = dot_product_attention(
        q_BTNH, k_BTKH, v_BTKH, block=config.attention_block, dropout_rate=config.dropout_rate("attention"), key=key
    )
    return linear(out_BTNH.reshape(batch, time, -1), params["output"])
