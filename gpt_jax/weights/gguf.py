"""GGUF files (llama.cpp's format), de-quantised tensor by tensor as they are read.

Names, keys and the order of the rotary pairs: the `gguf` package (gguf/constants.py, gguf/tensor_mapping.py) and
llama.cpp's convert_hf_to_gguf.py.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gpt_jax.errors import UserError
from gpt_jax.models.config import ModelConfig
from gpt_jax.weights.layouts import GGUF
from gpt_jax.weights.tensors import Checkpoint, LazyTensor, described_model, unreadable

ARCHITECTURES = ("llama", "qwen2")
_ROPE_FACTORS = "rope_freqs.weight"
_KINDS = {int: "a whole number", float: "a number", str: "a text"}


def read_gguf(path: Path) -> Checkpoint:
    """A model in one GGUF file; its `metadata` holds every key of the file, those of the tokenizer among them
    (`tokenizer.ggml.model`, `.tokens`, `.merges`, `.token_type`, ...; `tokenizer.chat_template`).

    Raises:
      UserError: when the file is missing or damaged, the architecture or the kind of quantisation is not known, or
        the model computes something that the decoder here does not.
    """
    from gpt_jax.extras import require

    path = Path(path)
    gguf = require("gguf", "gguf")
    with unreadable(path, "a GGUF file"):
        reader = gguf.GGUFReader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
        entries = {entry.name: entry for entry in reader.tensors}
    config = _read_config(metadata, entries, path)
    for kind in {entry.tensor_type for entry in entries.values()}:
        _refuse_unknown_quantisation(gguf, kind, path)
    # The rotary pairs of `llama` files stand interleaved, those of all others in halves as ours do.
    pair_heads = {}
    if metadata["general.architecture"] == "llama":
        pair_heads = {"attn_q": config.num_heads, "attn_k": config.kv_heads}
    tensors = {}
    for name, entry in entries.items():
        if name == _ROPE_FACTORS:
            continue
        shape = tuple(int(size) for size in reversed(entry.shape))
        heads = next((heads for part, heads in pair_heads.items() if f".{part}." in name), None)
        tensors[name] = LazyTensor(
            name, shape, np.dtype(np.float32), functools.partial(_read, gguf, entry, shape, heads)
        )
    return Checkpoint(path, config, GGUF, tensors, metadata)


def _read(gguf, entry, shape: tuple[int, ...], heads: int | None) -> np.ndarray:
    x = gguf.quants.dequantize(entry.data, entry.tensor_type).astype(np.float32, copy=False).reshape(shape)
    if heads is None:
        return x
    return x.reshape(heads, shape[0] // heads // 2, 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def _refuse_unknown_quantisation(gguf, kind, path: Path) -> None:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    try:
        gguf.quants.dequantize(np.zeros((1, size), np.uint8), kind)
    except NotImplementedError as error:
        raise UserError(
            f"{path}: tensors of kind {kind.name}, which the gguf package cannot de-quantise. Fetch a file of another "
            "kind, such as Q8_0, Q4_K_M or F16."
        ) from error


def _read_config(metadata: Mapping[str, Any], entries: Mapping[str, Any], path: Path) -> ModelConfig:
    architecture = metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise UserError(
            f"{path}: general.architecture={architecture!r} is none of those known here: {', '.join(ARCHITECTURES)}."
        )

    def key(name: str, default: Any = None, kind: type = int) -> Any:
        value = metadata.get(f"{architecture}.{name}", default)
        if value is None:
            raise UserError(f"{path}: the key {architecture}.{name} is missing.")
        if isinstance(value, list):
            raise UserError(f"{path}: {architecture}.{name} differs from layer to layer, which is not computed here.")
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise UserError(f"{path}: {architecture}.{name}={value!r}: expected {_KINDS[kind]}.")
        return value

    for name in ("expert_count", "attention.sliding_window"):
        if value := key(name, 0):
            raise UserError(f"{path}: {architecture}.{name}={value} is not computed here.")
    width, heads = key("embedding_length"), key("attention.head_count")
    head_dim = key("attention.key_length", width // max(heads, 1))
    if (rotary := key("rope.dimension_count", head_dim)) != head_dim:
        raise UserError(f"{path}: {architecture}.rope.dimension_count={rotary}, and heads are {head_dim} wide; a part "
                        "of each head without rotary positions is not computed here.")  # fmt: skip
    if "token_embd.weight" not in entries:
        raise UserError(f"{path}: the tensor token_embd.weight is missing.")
    theta = _decimal(key("rope.freq_base", 10_000.0, float))
    fields = dict(
        vocab_size=int(entries["token_embd.weight"].shape[-1]),
        context_length=key("context_length"),
        num_layers=key("block_count"),
        num_heads=heads,
        key_value_heads=key("attention.head_count_kv", heads),
        embed_dim=width,
        head_dim=head_dim,
        mlp_dim=key("feed_forward_length"),
        norm="rmsnorm",
        norm_epsilon=_decimal(key("attention.layer_norm_rms_epsilon", kind=float)),
        activation="silu",
        gated_mlp=True,
        positions="rotary",
        rope_theta=theta,
        biases=_biases(entries),
        tied_output="output.weight" not in entries,
    )
    return described_model(fields | _rope_scaling(key, entries, theta, head_dim, path), path)


def _decimal(value: float) -> float:
    """A float32 as the number that somebody once typed: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _biases(entries: Mapping[str, Any]) -> str:
    if "blk.0.ffn_up.bias" in entries:
        return "all"
    return "qkv" if "blk.0.attn_q.bias" in entries else "none"


def _rope_scaling(key, entries: Mapping[str, Any], theta: float, head_dim: int, path: Path) -> dict[str, Any]:
    kind = key("rope.scaling.type", "none", str)
    if _ROPE_FACTORS in entries:
        return _llama3_scaling(np.asarray(entries[_ROPE_FACTORS].data, np.float64), theta, head_dim, path)
    if kind == "linear":
        return dict(rope_scaling="linear", rope_factor=_decimal(key("rope.scaling.factor", kind=float)))
    if kind != "none":
        raise UserError(f"{path}: rope.scaling.type={kind!r} is not computed here; expected none or linear.")
    return {}


def _llama3_scaling(factors: np.ndarray, theta: float, head_dim: int, path: Path) -> dict[str, Any]:
    """The parameters of Llama 3.1's scaling, which a GGUF holds only as what it divides each frequency by.

    The largest divisor is the factor (8 in Llama 3.1, 32 in the small 3.2); low 1, high 4 and original context 8192
    are the same in all releases. Anything else is refused.
    """
    low, high, original = 1.0, 4.0, 8192
    strange = UserError(f"{path}: the divisors in {_ROPE_FACTORS} are not those of Llama 3.1's scaling.")
    if not factors.size or factors.shape != (head_dim // 2,) or theta <= 0:
        raise strange
    factor = _decimal(factors.max())
    waves = original * theta ** (-np.arange(0, head_dim, 2) / head_dim) / (2 * np.pi)
    kept = np.clip((waves - low) / (high - low), 0, 1)
    if not np.allclose(factors, 1 / (kept + (1 - kept) / factor), rtol=1e-5):
        raise strange
    return dict(
        rope_scaling="llama3",
        rope_factor=factor,
        rope_low_frequency_factor=low,
        rope_high_frequency_factor=high,
        rope_original_context=original,
    )
