"""Tensors of a *.safetensors file, memory-mapped."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors

from gpt_jax.weights.tensors import LazyTensor, unreadable

# The names of the format (safetensors' README) -> dtypes.
_DTYPES = {
    "F64": np.dtype(np.float64), "F32": np.dtype(np.float32), "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16), "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2), "BOOL": np.dtype(bool),
    **{f"{sign}{bits}": np.dtype(f"{kind}{bits}") for sign, kind in (("I", "int"), ("U", "uint"))
       for bits in (8, 16, 32, 64)},
}  # fmt: skip


def read_safetensors(path: Path) -> dict[str, LazyTensor]:
    """The tensors of `path` by name; nothing but the header is read.

    The library checks that the file is whole. Its own tensors are copies, though, and a sharded load wants slices of
    a transposed bfloat16 tensor without one; so the views are made here from the header, which is a length (8 bytes,
    little-endian) and that many bytes of JSON with each tensor's dtype, shape and offsets behind the header.

    Raises:
      UserError: when the file is missing, cut short, or no safetensors file.
    """
    with unreadable(path, "a safetensors file"):
        with safetensors.safe_open(path, framework="np"):
            pass
        data = np.memmap(path, np.uint8, mode="r")
        start = 8 + int(data[:8].view("<u8")[0])
        header = json.loads(data[8:start].tobytes())
        header.pop("__metadata__", None)
        return {name: _lazy(name, entry, data[start:]) for name, entry in header.items()}


def _lazy(name: str, entry: dict, data: np.ndarray) -> LazyTensor:
    shape, dtype = tuple(entry["shape"]), _DTYPES[entry["dtype"]]
    begin, end = entry["data_offsets"]
    return LazyTensor(name, shape, dtype, lambda: data[begin:end].view(dtype).reshape(shape))
