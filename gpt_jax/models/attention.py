"""Causal self-attention. Shape suffixes as in layers.py."""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from gpt_jax.models.attention_kernels import (
    ATTENTION_ENDS,
    choose_kernel,
    cudnn_attention,
    repeated_heads,
    splash_attention,
)
from gpt_jax.models.config import ModelConfig
from gpt_jax.models.layers import dropout_mask, linear, rotate, row_sums
from gpt_jax.parallel.rules import constrain, parts


def dot_product_attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    block: int = 0,
    dropout_rate: float = 0.0,
    key: jax.Array | None = None,
    segments_BT: jax.Array | None = None,
) -> jax.Array:
    """softmax(q kᵀ / √H) v under a causal mask, T = S; the reference that every other kernel is held to.

    Query t sees keys s ≤ t. Scores and softmax in float32 (or wider); dropout on the weights. Query heads are in
    groups of N/K, each group with one key/value head.

    Args:
      block: queries worked off together; each block computes the scores of the keys up to its own end only, which
        saves almost half of them. 0: all in one.
      segments_BT: int, which of the texts that share a row a token belongs to; it sees no other. None: all is one.

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
        visible = jnp.arange(stop) <= jnp.arange(start, stop)[:, None]
        if segments_BT is not None:
            visible &= (segments_BT[:, start:stop, None] == segments_BT[:, None, :stop])[:, None]
        outputs.append(
            _attend(q_BTKGH[:, start:stop], k_BSKH[:, :stop], v_BSKH[:, :stop], visible, dropout_rate, block_key)
        )
    return jnp.concatenate(outputs, axis=1).reshape(batch, time, heads, width)


def banded_attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    window: int,
    dropout_rate: float = 0.0,
    key: jax.Array | None = None,
    segments_BT: jax.Array | None = None,
) -> jax.Array:
    """`dot_product_attention` in which query t sees only keys t - `window` < s ≤ t; its cost grows with T · window.

    The locally banded pattern of Sparse Transformers (Child et al. 2019) that GPT-3 puts in every other layer (Brown
    et al. 2020, §2.1). Queries stand in chunks (C) of `window`; each chunk meets its own keys and those of the chunk
    before, which is all that it may see.

    Returns: [B, T, N, H] in q's dtype.
    """
    batch, time, heads, width = q_BTNH.shape
    if window >= time:
        return dot_product_attention(
            q_BTNH, k_BSKH, v_BSKH, dropout_rate=dropout_rate, key=key, segments_BT=segments_BT
        )
    kv_heads, chunks = k_BSKH.shape[2], -(-time // window)

    def chunked(x: jax.Array) -> jax.Array:  # behind the end stand zeros, which no real query sees
        x = jnp.pad(x, ((0, 0), (0, chunks * window - time), *[(0, 0)] * (x.ndim - 2)))
        return x.reshape(batch, chunks, window, *x.shape[2:])

    def with_chunk_before(x: jax.Array) -> jax.Array:
        before = jnp.pad(x[:, :-1], ((0, 0), (1, 0), *[(0, 0)] * (x.ndim - 2)))
        return jnp.concatenate([before, x], axis=2)

    q_BCTKGH = chunked(q_BTNH).reshape(batch, chunks, window, kv_heads, heads // kv_heads, width)
    k_BCSKH, v_BCSKH = with_chunk_before(chunked(k_BSKH)), with_chunk_before(chunked(v_BSKH))
    distance_TS = window + jnp.arange(window)[:, None] - jnp.arange(2 * window)
    exists_CS = (jnp.arange(chunks) > 0)[:, None] | (jnp.arange(2 * window) >= window)  # nothing before chunk 0
    visible_CTS = (distance_TS >= 0) & (distance_TS < window) & exists_CS[:, None, :]
    visible = visible_CTS[:, None]
    if segments_BT is not None:
        own_BCT = chunked(segments_BT)
        visible &= (own_BCT[..., None] == with_chunk_before(own_BCT)[:, :, None])[:, :, None]
    out_BCTKGH = _attend(q_BCTKGH, k_BCSKH, v_BCSKH, visible, dropout_rate, key)
    return out_BCTKGH.reshape(batch, chunks * window, heads, width)[:, :time]


def cached_attention(q_BTNH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, visible_BTS: jax.Array) -> jax.Array:
    """Attention of new queries to keys and values as a cache holds them, where `visible_BTS` allows it.

    Returns: [B, T, N, H] in q's dtype.
    """
    batch, time, heads, width = q_BTNH.shape
    kv_heads = k_BKSH.shape[1]
    q_BTKGH = q_BTNH.reshape(batch, time, kv_heads, heads // kv_heads, width)
    return _attend_by_heads(q_BTKGH, k_BKSH, v_BKSH, visible_BTS[:, None]).reshape(batch, time, heads, width)


def _attend(q, k, v, visible, dropout_rate, key):
    """Attention of queries [..., T, K, G, H] to keys and values [..., S, K, H], where `visible` allows it.

    `visible` is [T, S], or [..., 1, T, S] with a place for the heads.
    """
    return _attend_by_heads(q, jnp.swapaxes(k, -3, -2), jnp.swapaxes(v, -3, -2), visible, dropout_rate, key)


def _attend_by_heads(q, k_KSH, v_KSH, visible, dropout_rate=0.0, key=None):
    """The same with keys and values [..., K, S, H]."""
    *leading, time, kv_heads, group, width = q.shape
    # The queries that share a key head stand below each other as the rows (R) of one matrix.
    q_KRH = jnp.moveaxis(q, -4, -2).reshape(*leading, kv_heads, group * time, width)
    visible_RS = jnp.concatenate([visible] * group, axis=-2)
    out_KRH = _attention(q_KRH, k_KSH, v_KSH, visible_RS, key if dropout_rate else None, dropout_rate)
    return jnp.moveaxis(out_KRH.reshape(*leading, kv_heads, group, time, width), -2, -4)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attention(q_KRH, k_KSH, v_KSH, visible_RS, key, dropout_rate):
    """The same for rows of queries; its gradient by hand.

    The exponentials are kept as they are and the rows of the *output* divided by their sums, which spares a pass over
    the scores. The sign of a kept exponential says whether dropout took it: no mask has to be stored.
    """
    return _attention_forward(q_KRH, k_KSH, v_KSH, visible_RS, key, dropout_rate)[0]


def _attention_forward(q_KRH, k_KSH, v_KSH, visible_RS, key, dropout_rate):
    wide = jnp.promote_types(q_KRH.dtype, jnp.float32)
    scores = jnp.einsum("...rh,...sh->...rs", q_KRH, k_KSH, preferred_element_type=wide) * q_KRH.shape[-1] ** -0.5
    # Masked scores are replaced, not lowered by a sum: finfo.min stays finite where -1e9 overflows (float16).
    scores = jnp.where(visible_RS, scores, jnp.finfo(wide).min)
    exps = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True)).astype(q_KRH.dtype)
    scale = 1.0
    if key is not None:
        kept, scale = dropout_mask(key, dropout_rate, exps.shape)
        exps = jnp.where(kept, exps, -exps)
    share_R1 = checkpoint_name(1 / row_sums(jnp.abs(exps)), ATTENTION_ENDS)
    out = jnp.einsum("...rs,...sh->...rh", jnp.maximum(exps, 0), v_KSH, preferred_element_type=wide)
    out = checkpoint_name((out * (scale * share_R1)).astype(q_KRH.dtype), ATTENTION_ENDS)
    return out, (q_KRH, k_KSH, v_KSH, exps, share_R1, out, scale)


def _attention_backward(dropout_rate, residuals, gradient):
    q_KRH, k_KSH, v_KSH, exps, share_R1, out, scale = residuals
    dtype, wide = q_KRH.dtype, share_R1.dtype
    v_gradient = jnp.einsum(
        "...rs,...rh->...sh", jnp.maximum(exps, 0), (gradient * (scale * share_R1)).astype(dtype)
    )  # fmt: skip
    weights_gradient = jnp.einsum("...rh,...sh->...rs", gradient, v_KSH, preferred_element_type=wide)
    # Σ weights · their gradient, over the keys, is output · its gradient (Dao et al. 2022, appendix B.2).
    delta_R1 = jnp.sum(gradient.astype(wide) * out, axis=-1, keepdims=True)
    scores_gradient = jnp.abs(exps) * (jnp.where(exps > 0, weights_gradient * scale, 0) - delta_R1)
    scores_gradient = (scores_gradient * (share_R1 * q_KRH.shape[-1] ** -0.5)).astype(dtype)
    q_gradient = jnp.einsum("...rs,...sh->...rh", scores_gradient, k_KSH)
    k_gradient = jnp.einsum("...rs,...rh->...sh", scores_gradient, q_KRH)
    return q_gradient, k_gradient, v_gradient, None, None


_attention.defvjp(_attention_forward, _attention_backward)


def self_attention(
    x_BTD: jax.Array,
    params: dict,
    config: ModelConfig,
    key: jax.Array | None,
    *,
    window: int = 0,
    segments_BT: jax.Array | None = None,
    positions_BT: jax.Array | None = None,
) -> jax.Array:
    """Multi-head (or grouped-query) causal self-attention of one layer, its output projection included.

    Args:
      window: keys that a query sees, itself included; 0: all up to itself.
      segments_BT: as of `dot_product_attention`; positions_BT: where the tokens stand, by default at 0, 1, ..., T - 1.
    """
    batch, time, _ = x_BTD.shape
    positions = jnp.arange(time) if positions_BT is None else positions_BT
    heads = (checkpoint_name(x, ATTENTION_ENDS) for x in project_heads(x_BTD, params, config, positions))
    out_BTNH = attend(*heads, config, key, window=window, segments_BT=segments_BT)
    return linear(checkpoint_name(out_BTNH.reshape(batch, time, -1), ATTENTION_ENDS), params["output"])


def project_heads(
    x_BTD: jax.Array, params: dict, config: ModelConfig, positions_T: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries [B, T, N, H], keys and values [B, T, K, H] of tokens that stand at `positions_T`, [T] or [B, T]."""
    batch, time, _ = x_BTD.shape

    def project(name: str, heads: int) -> jax.Array:
        y = linear(x_BTD, params[name]).reshape(batch, time, heads, config.head_width)
        return constrain(y, "batch", "time", "heads", None)

    q_BTNH = project("query", config.num_heads)
    k_BTKH = project("key", config.kv_heads)
    v_BTKH = project("value", config.kv_heads)
    if config.positions == "rotary":
        q_BTNH, k_BTKH = rotate(q_BTNH, positions_T, config), rotate(k_BTKH, positions_T, config)
    return q_BTNH, k_BTKH, v_BTKH


def attend(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    config: ModelConfig,
    key: jax.Array | None,
    *,
    window: int,
    segments_BT: jax.Array | None = None,
) -> jax.Array:
    """Causal attention by the kernel that `choose_kernel` names, on any mesh.

    Where the mesh divides time, devices exchange it for heads before attention and back after it, each time by an
    all-to-all (DeepSpeed-Ulysses, Jacobs et al. 2023): inside, a device has all positions of some heads. Key/value
    heads too few for that are repeated.

    Returns: [B, T, N, H] in q's dtype, divided as q is.
    """
    rate = config.dropout_rate("attention") if key is not None else 0.0
    packed = segments_BT is not None
    name = choose_kernel(config, q_BTNH.shape[1], window=window, dropping=rate > 0, packed=packed)
    if name != "plain":
        kernel = {"cudnn": cudnn_attention, "splash": splash_attention}[name]
        kernel = functools.partial(kernel, window=window)
    elif window:
        kernel = functools.partial(banded_attention, window=window, dropout_rate=rate, key=key)
    else:
        kernel = functools.partial(dot_product_attention, block=config.attention_block, dropout_rate=rate, key=key)
    if packed:
        kernel = functools.partial(kernel, segments_BT=constrain(segments_BT, "batch", None))

    exchanged = parts("time") > 1
    if (exchanged or name != "plain") and q_BTNH.shape[2] % parts("attention_heads") == 0:
        k_BSKH, v_BSKH = (repeated_heads(x, parts("attention_heads")) for x in (k_BSKH, v_BSKH))
    if not exchanged:
        return kernel(q_BTNH, k_BSKH, v_BSKH)

    def whole_time(x: jax.Array) -> jax.Array:
        return constrain(x, "batch", None, "attention_heads", None)

    def divided_time(x: jax.Array) -> jax.Array:
        return constrain(x, "batch", "time", "heads", None)

    inputs = (whole_time(divided_time(x)) for x in (q_BTNH, k_BSKH, v_BSKH))
    return divided_time(whole_time(kernel(*inputs)))
