"""The mathematics of the layers, as plain functions.

Shape suffixes: B batch, T query time, S key time, D model width, N query heads, K key/value heads, G query heads that
share a key/value head, H head width, F MLP width, V vocabulary, L layers, U units of an LSTM.
"""

import math

import jax
import jax.numpy as jnp

from gpt_jax.models.config import ModelConfig
from gpt_jax.parallel.rules import constrain


def norm(x_BTD: jax.Array, params: dict, config: ModelConfig) -> jax.Array:
    """Layer normalisation (Ba et al. 2016; biased variance, epsilon inside the root) or RMS normalisation.

    Computed in float32 (or the wider of that and x's dtype), returned in x's dtype.
    """
    x = x_BTD.astype(jnp.promote_types(x_BTD.dtype, jnp.float32))
    if config.norm == "layernorm":
        mean = jnp.mean(x, axis=-1, keepdims=True)
        if x_BTD.dtype == jnp.bfloat16:  # mean of squares - squared mean reads x once; bfloat16 has no digits to lose
            mean_square = jnp.maximum(jnp.mean(jnp.square(x), axis=-1, keepdims=True) - jnp.square(mean), 0)
            x = x - mean
        else:
            x = x - mean
            mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    else:
        mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    x = x * jax.lax.rsqrt(mean_square + config.norm_epsilon) * params["scale"]
    if "bias" in params:
        x = x + params["bias"]
    return x.astype(x_BTD.dtype)


def linear(x: jax.Array, params: dict) -> jax.Array:
    """x @ kernel + bias, in x's dtype; kernel [in, out]."""
    y = x @ params["kernel"].astype(x.dtype)
    return y + params["bias"].astype(x.dtype) if "bias" in params else y


def activation(x: jax.Array, name: str) -> jax.Array:
    """The MLP's nonlinearity; `gelu_tanh` is the approximation that GPT-1 and GPT-2 use, not the exact GELU."""
    match name:
        case "gelu_tanh":
            return jax.nn.gelu(x, approximate=True)
        case "gelu":
            return jax.nn.gelu(x, approximate=False)
        case "relu":
            return jax.nn.relu(x)
        case "relu_squared":  # So et al. 2021, "Primer"
            return jnp.square(jax.nn.relu(x))
        case "silu":
            return jax.nn.silu(x)
    raise ValueError(name)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Inverted dropout: kept elements are divided by the chance of being kept. Without a key: x."""
    if key is None or rate == 0.0:
        return x
    kept, scale = dropout_mask(key, rate, x.shape)
    return jnp.where(kept, x * scale, 0).astype(x.dtype)


def dropout_mask(key: jax.Array, rate: float, shape: tuple[int, ...]) -> tuple[jax.Array, float]:
    """Which elements dropout keeps (bool, `shape`), and what they are multiplied by.

    A byte decides about an element, so that four of them (neighbours along the first axis, where four divide it) share
    a word of random bits, whose making would otherwise take longer than a layer's arithmetic. So the rate is a whole
    number of 256ths, at least one: 0.1 is 26/256. The mask depends on key and shape alone, never on the mesh.
    """
    dropped = min(max(round(256 * rate), 1), 255)
    scale = 256 / (256 - dropped)
    if shape[0] % 4:
        return jax.random.bits(key, shape, jnp.uint8) >= dropped, scale
    words = jax.random.bits(key, (shape[0] // 4, 1, *shape[1:]), jnp.uint32)
    # The barrier keeps the compiler from making the words once for each of their readers.
    words = jax.lax.bitcast_convert_type(jax.lax.optimization_barrier(words), jnp.int32)
    # Each byte in turn becomes the highest of a signed number; those below it are too small to matter.
    shifts = jnp.array([24, 16, 8, 0], jnp.int32).reshape(4, *[1] * (len(shape) - 1))
    return (words << shifts).reshape(shape) >= ((dropped - 128) << 24), scale


def row_sums(x: jax.Array) -> jax.Array:
    """Sums over the last axis, which stays as 1; float32 or wider.

    Of bfloat16 by a product with ones: exact products, summed in float32 by the matrix unit, where a sum of its own
    would keep the vector unit busy for a multiple of that time.
    """
    if x.dtype != jnp.bfloat16:
        return jnp.sum(x, axis=-1, keepdims=True)
    ones = jnp.ones((x.shape[-1], 128), x.dtype)  # a single column would be turned into a sum again
    return jnp.einsum("...s,sj->...j", x, ones, preferred_element_type=jnp.float32)[..., :1]


def rotary_frequencies(config: ModelConfig, dtype: jnp.dtype) -> jax.Array:
    """The angle by which each pair of a head turns from one position to the next, [H/2], fastest first.

    theta^(-2i/H) (Su et al. 2021), changed by `rope_scaling` for contexts longer than the model first learnt:
    `linear` divides all by the factor; `llama3` only those whose wave is longer than the original context allows,
    with a smooth passage between (as in Meta's code of Llama 3.1).
    """
    half = config.head_width // 2
    frequencies = config.rope_theta ** (-jnp.arange(half, dtype=dtype) / half)
    if config.rope_scaling == "none":
        return frequencies
    scaled = frequencies / config.rope_factor
    if config.rope_scaling == "linear":
        return scaled
    low, high = config.rope_low_frequency_factor, config.rope_high_frequency_factor
    waves_in_context = config.rope_original_context * frequencies / (2 * math.pi)
    kept = jnp.clip((waves_in_context - low) / (high - low), 0, 1)  # 0: scaled in full, 1: as it was
    return kept * frequencies + (1 - kept) * scaled


def rotate(x_BTNH: jax.Array, positions_T: jax.Array, config: ModelConfig) -> jax.Array:
    """Rotary position embedding (Su et al. 2021) in the half-split order of the Llama weights on Hugging Face.

    `positions_T`: int [T], or [B, T] where rows stand at different places.
    """
    half = x_BTNH.shape[-1] // 2
    dtype = jnp.promote_types(x_BTNH.dtype, jnp.float32)
    angles_T1H = (positions_T.astype(dtype)[..., None] * rotary_frequencies(config, dtype))[..., None, :]
    cos, sin = jnp.cos(angles_T1H), jnp.sin(angles_T1H)
    x, y = x_BTNH[..., :half].astype(dtype), x_BTNH[..., half:].astype(dtype)
    return jnp.concatenate([x * cos - y * sin, y * cos + x * sin], axis=-1).astype(x_BTNH.dtype)


def mlp(x_BTD: jax.Array, params: dict, config: ModelConfig) -> jax.Array:
    """The position-wise feed-forward layer, gated where the config says so."""
    hidden_BTF = constrain(linear(x_BTD, params["up"]), "batch", "time", "mlp")
    if config.gated_mlp:
        hidden_BTF = activation(linear(x_BTD, params["gate"]), config.activation) * hidden_BTF
    else:
        hidden_BTF = activation(hidden_BTF, config.activation)
    return linear(hidden_BTF, params["down"])
