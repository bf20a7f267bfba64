"""Tensors of a PyTorch checkpoint (*.bin, *.pt), memory-mapped, without PyTorch and without running what it says.

Such a file is a pickle, that is, a small program that may call any function by name. Here the names that a state dict
needs stand for harmless objects of ours; any other name ends the reading before a single call.

Two forms (torch/serialization.py): since PyTorch 1.6 a zip archive, stored uncompressed, with `data.pkl` and one
entry `data/KEY` per storage; before that one stream: three small pickles (a magic number, the version, the machine's
byte order), the object, the list of storage keys, then each storage as its number of elements (int64) and its bytes.
"""

import collections
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from gpt_jax.errors import UserError
from gpt_jax.weights.tensors import LazyTensor, unreadable

_STREAM_MAGIC = 0x1950A86A20F9469CFC6C
_STREAM_START = pickle.dumps(_STREAM_MAGIC, protocol=2)

_STORAGE_DTYPES = {
    f"{kind}Storage": np.dtype(dtype)
    for kind, dtype in {
        "Double": np.float64, "Float": np.float32, "Half": np.float16, "BFloat16": ml_dtypes.bfloat16,
        "Long": np.int64, "Int": np.int32, "Short": np.int16, "Char": np.int8, "Byte": np.uint8, "Bool": bool,
    }.items()
}  # fmt: skip


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype
    size: int  # in elements


class _View(NamedTuple):
    """A tensor as the pickle describes it; offset and strides in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _RebuildTensor:
    """Stands for torch._utils._rebuild_tensor_v2. Without attributes, so that a pickle cannot set one."""

    __slots__ = ()

    def __call__(self, storage, offset, shape, strides, *_training_flags) -> _View:
        if not isinstance(storage, _Storage):
            raise pickle.UnpicklingError("a tensor without a storage")
        view = _View(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))
        reach = view.offset + sum((n - 1) * stride for n, stride in zip(view.shape, view.strides, strict=True)) + 1
        inside = min((view.offset, *view.shape, *view.strides)) >= 0 and (reach <= storage.size or 0 in view.shape)
        if not inside:
            raise pickle.UnpicklingError("a tensor reaches beyond its storage")
        return view


class _RebuildParameter:
    """Stands for torch._utils._rebuild_parameter: the tensor inside."""

    __slots__ = ()

    def __call__(self, view, *_training_flags) -> _View:
        return view


class _Unpickler(pickle.Unpickler):
    """Knows what a state dict is made of, and nothing else."""

    def __init__(self, file: BinaryIO, path: Path):
        super().__init__(file, encoding="utf-8")
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
            ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
            ("torch", "Size"): tuple,
        }
        if module == "torch" and name in _STORAGE_DTYPES:
            return name
        if (module, name) in allowed:
            return allowed[module, name]
        raise UserError(
            f"{self._path}: this file asks to call {module}.{name}, which no list of weights needs; nothing of it was "
            "run. If you trust where it comes from, load it with PyTorch and save the weights as safetensors."
        )

    def persistent_load(self, pid: tuple) -> _Storage:
        kind, storage_type, key, _location, size = pid[:5]
        if kind != "storage" or (len(pid) > 5 and pid[5] is not None):
            raise pickle.UnpicklingError("a storage of a kind that state dicts do not have")
        return _Storage(str(key), _STORAGE_DTYPES[storage_type], int(size))


def read_torch_file(path: Path) -> dict[str, LazyTensor]:
    """The tensors of the state dict in `path` by name; nothing but its pickle is read, and none of it is run.

    Raises:
      UserError: when the file is missing, cut short, no PyTorch file, holds something else than tensors by name, or
        its pickle calls for anything that a state dict does not need (the message names it).
    """
    with unreadable(path, "a PyTorch checkpoint"):
        with open(path, "rb") as file:
            start = file.read(len(_STREAM_START))
            file.seek(0)
            if start[:2] == b"PK":
                state, storages = _read_zip(file, path)
            elif start == _STREAM_START:
                state, storages = _read_stream(file, path)
            else:
                raise ValueError("it begins like neither of PyTorch's two formats")
        if not isinstance(state, Mapping):
            raise UserError(f"{path}: holds a {type(state).__name__}, expected a state dict: tensors by name.")
        strangers = [
            str(name) for name, value in state.items() if not (isinstance(name, str) and isinstance(value, _View))
        ]
        if strangers:
            raise UserError(
                f"{path}: {len(strangers)} entries are no tensors, beginning with {', '.join(strangers[:8])}. Expected "
                "a state dict, tensors by name; out of a training checkpoint, save the model's part alone."
            )
        data = np.memmap(path, np.uint8, mode="r")
        return {name: _lazy(name, view, data, storages) for name, view in state.items()}


def _lazy(name: str, view: _View, data: np.ndarray, storages: Callable[[_Storage], int]) -> LazyTensor:
    begin = storages(view.storage)
    end = begin + view.storage.size * view.storage.dtype.itemsize
    if end > len(data):
        raise ValueError(f"the storage of {name} ends at byte {end:,}")

    def read() -> np.ndarray:
        elements = data[begin:end].view(view.storage.dtype)[view.offset :]
        strides = [stride * elements.itemsize for stride in view.strides]
        return np.lib.stride_tricks.as_strided(elements, view.shape, strides, writeable=False)

    return LazyTensor(name, view.shape, view.storage.dtype, read)


def _read_zip(file: BinaryIO, path: Path) -> tuple[Any, Callable[[_Storage], int]]:
    """The unpickled object, and storage -> its first byte in the file."""
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        [root] = [name.removesuffix("data.pkl") for name in entries if name.split("/", 1)[-1] == "data.pkl"]
        if entries.get(f"{root}byteorder") and archive.read(f"{root}byteorder") != b"little":
            raise UserError(f"{path}: written on a big-endian machine, which is not supported; save it as safetensors.")
        with archive.open(f"{root}data.pkl") as pickled:
            state = _Unpickler(pickled, path).load()

    def first_byte(storage: _Storage) -> int:
        entry = entries[f"{root}data/{storage.key}"]
        if entry.compress_type != zipfile.ZIP_STORED:
            raise UserError(f"{path}: its entries are compressed, which PyTorch never does; save it anew with PyTorch.")
        if entry.file_size < storage.size * storage.dtype.itemsize:
            raise ValueError(f"the entry {entry.filename} is too short")
        file.seek(entry.header_offset)
        name_length, extra_length = struct.unpack("<HH", file.read(30)[26:])  # of the local header, which has its own
        return entry.header_offset + 30 + name_length + extra_length

    places = {key: first_byte(storage) for key, storage in _storages(state).items()}
    return state, lambda storage: places[storage.key]


def _read_stream(file: BinaryIO, path: Path) -> tuple[Any, Callable[[_Storage], int]]:
    """The unpickled object, and storage -> its first byte in the file."""
    _magic, _version, system = (_Unpickler(file, path).load() for _ in range(3))
    if not system.get("little_endian", True):
        raise UserError(f"{path}: written on a big-endian machine, which is not supported; save it as safetensors.")
    state = _Unpickler(file, path).load()
    keys = _Unpickler(file, path).load()
    storages, places = _storages(state), {}
    for key in map(str, keys):
        (size,) = struct.unpack("<q", file.read(8))
        if size != storages[key].size:
            raise ValueError(f"storage {key} has {size} elements, its tensors expect {storages[key].size}")
        places[key] = file.tell()
        file.seek(size * storages[key].dtype.itemsize, 1)
    return state, lambda storage: places[storage.key]


def _storages(state: Any) -> dict[str, _Storage]:
    views = state.values() if isinstance(state, Mapping) else ()
    return {view.storage.key: view.storage for view in views if isinstance(view, _View)}
