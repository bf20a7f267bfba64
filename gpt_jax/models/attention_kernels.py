"""Attention by other people's fused kernels, and the one place that decides which kernel attends.

`cudnn` (NVIDIA) and `splash` (TPU; Pallas) never store the T x T scores, so their memory grows with T, not with its
square. Neither knows dropout on the weights. What they must equal is in attention.py. Shape suffixes as in layers.py.
"""

import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp

from gpt_jax.errors import UserError
from gpt_jax.models.config import ModelConfig
from gpt_jax.parallel.rules import device_kind, on_each_device
from gpt_jax.parallel.runtime import announce

Kernel = Literal["plain", "cudnn", "splash"]

# By this name `rematerialised` knows what goes into attention and comes out of it.
ATTENTION_ENDS = "attention_ends"
SPLASH_FROM = 2048  # keys a query; at 1,024 XLA's own program, by TPU compiler estimate, is the faster one
SPLASH_BLOCKS = (512, 256, 128)  # of queries and of keys; the kernel works in lanes of 128


def choose_kernel(
    config: ModelConfig, time: int, *, window: int = 0, dropping: bool = False, packed: bool = False
) -> Kernel:
    """The kernel for sequences of `time` on the mesh in force, by `config.attention_kernel`.

    A kernel that cannot do it gives way to the plain one, which is said once: a run that trains with one also samples
    and scores, at lengths of their own. What a run would be wrong about from the start, `check_kernel` refuses.

    Args:
      window: keys that a query sees; 0: all up to itself.
      dropping: whether attention weights are dropped; packed: whether several texts share a row.
    """
    device = device_kind(jax.sharding.get_abstract_mesh())
    kernel = config.attention_kernel
    if kernel == "auto":
        keys = min(time, 2 * window) if window else time  # whose scores the plain kernels compute
        long = "splash" if keys >= SPLASH_FROM else "plain"
        kernel = {"tpu": long, "gpu": "cudnn"}.get(_platform(device), "plain")
    if kernel == "plain" or not (
        reason := _obstacle(kernel, config, device, time=time, dropping=dropping, packed=packed)
    ):
        return kernel
    if time > 1:  # parameters are made with one token
        _say_once(f"attention: the plain kernel, since {kernel} {reason}")
    return "plain"


def check_kernel(config: ModelConfig, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh, time: int | None) -> None:
    """Raises UserError where the kernel that the config names cannot train on `mesh`; `time`: None where it varies."""
    kernel = config.attention_kernel
    if kernel in ("auto", "plain"):
        return
    dropping = config.dropout_rate("attention") > 0
    if reason := _obstacle(kernel, config, device_kind(mesh), time=time, dropping=dropping):
        raise UserError(
            f"model.attention_kernel={kernel}: {kernel} {reason}. Mend that, or set model.attention_kernel=auto."
        )


def cudnn_attention(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, *, window: int = 0) -> jax.Array:
    """`banded_attention` (window 0: `dot_product_attention`) by cuDNN, each device its batch and heads.

    Args:
      q_BTNH, k_BSKH, v_BSKH: bfloat16 or float16; the mesh must divide key/value heads as it does query heads.

    Returns: [B, T, N, H] in q's dtype.
    """
    attend = functools.partial(
        jax.nn.dot_product_attention,
        is_causal=True,
        local_window_size=(window - 1, 0) if window else None,
        implementation="cudnn",
    )
    return on_each_device(attend, ("batch", None, "attention_heads", None), q_BTNH, k_BSKH, v_BSKH)


def splash_attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    window: int = 0,
    interpret: bool = False,
    segments_BT: jax.Array | None = None,
) -> jax.Array:
    """`banded_attention` (window 0: `dot_product_attention`) by JAX's Pallas kernel, each device its batch and heads.

    Blocks of keys that no query of a block sees are not visited.

    Args:
      q_BTNH, k_BSKH, v_BSKH: T a multiple of 128; the mesh must divide key/value heads as it does query heads.
      interpret: runs anywhere, slowly; for tests.
      segments_BT: as of `dot_product_attention`.

    Returns: [B, T, N, H] in q's dtype.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as splash  # slow to import, and few runs need it

    time = q_BTNH.shape[1]
    block = _splash_block(time)
    # dq has a kernel of its own: the fused one would store it once for each block of keys, T² / block numbers a head.
    names = ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq")
    sizes = splash.BlockSizes(**dict.fromkeys(names, block))
    shape = (time, time)
    mask = splash.LocalMask(shape, (window - 1, 0), 0) if window else splash.CausalMask(shape)

    def attend(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, *segments: jax.Array) -> jax.Array:
        masks = splash.MultiHeadMask([mask] * q_BTNH.shape[2])
        kernel = splash.make_splash_mha(
            masks, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret,
            residual_checkpoint_name=ATTENTION_ENDS,
        )  # fmt: skip
        heads_first = (jnp.swapaxes(x, 1, 2) for x in (q_BTNH * q_BTNH.shape[-1] ** -0.5, k_BSKH, v_BSKH))
        own = (splash.SegmentIds(q=ids, kv=ids) for ids in segments)
        return jnp.swapaxes(jax.vmap(kernel)(*heads_first, *own), 1, 2)

    arrays = (q_BTNH, k_BSKH, v_BSKH) if segments_BT is None else (q_BTNH, k_BSKH, v_BSKH, segments_BT)
    return on_each_device(attend, ("batch", None, "attention_heads", None), *arrays)


def repeated_heads(x_BSKH: jax.Array, parts: int) -> jax.Array:
    """Key/value heads, each as often as it takes for `parts` to divide them: [B, S, lcm(K, parts), H]."""
    kv_heads = x_BSKH.shape[2]
    return jnp.repeat(x_BSKH, math.lcm(kv_heads, parts) // kv_heads, axis=2)


def _obstacle(
    kernel: Kernel,
    config: ModelConfig,
    device: str | None,
    *,
    time: int | None,
    dropping: bool,
    packed: bool = False,
) -> str:
    """Why `kernel` cannot do it, as the rest of a sentence; empty where it can."""
    if dropping:
        return f"cannot drop attention weights, and model.attention_dropout is {config.dropout_rate('attention')}"
    if packed and kernel == "cudnn":
        return "does not keep apart the texts that share a row"
    return (_cudnn_obstacle(config, device) if kernel == "cudnn" else _splash_obstacle(config, device, time)) or ""


def _cudnn_obstacle(config: ModelConfig, device: str | None) -> str | None:
    if _platform(device) != "gpu":
        return f"runs on NVIDIA GPUs, and the mesh is of {device}"
    capability = _compute_capability()
    if capability < (8, 0):
        return f"attends on NVIDIA GPUs from compute capability 8.0 (Ampere), and this is {device}"
    if config.compute_dtype != "bfloat16":
        return f"takes model.compute_dtype=bfloat16, not {config.compute_dtype}"
    widest = 256 if capability >= (9, 0) else 128
    if config.head_width % 8 or config.head_width > widest:
        return f"takes heads whose width is a multiple of 8 up to {widest} on {device}, not {config.head_width}"
    return None


def _splash_obstacle(config: ModelConfig, device: str | None, time: int | None) -> str | None:
    if _platform(device) != "tpu" or device in ("TPU v2", "TPU v3"):
        return f"runs on TPUs from v4, and the mesh is of {device}"
    if config.compute_dtype == "float64":
        return "takes model.compute_dtype=bfloat16 or float32, not float64"
    if time is not None and _splash_block(time) is None:
        return f"takes sequences of a multiple of {SPLASH_BLOCKS[-1]} tokens, not of {time}"
    return None


def _splash_block(time: int) -> int | None:
    return next((block for block in SPLASH_BLOCKS if time % block == 0), None)


def _platform(device: str | None) -> str:
    if device is None or device == "cpu":
        return "cpu"
    return "tpu" if device.startswith("TPU") else "gpu"


def _compute_capability() -> tuple[int, ...]:
    """Of this machine's first NVIDIA GPU, such as (9, 0); empty where there is none."""
    try:
        return tuple(map(int, jax.local_devices(backend="cuda")[0].compute_capability.split(".")))
    except RuntimeError:  # no such backend
        return ()


@functools.cache
def _say_once(text: str) -> None:
    announce(text)
