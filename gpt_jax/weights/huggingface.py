"""Folders as Hugging Face's transformers writes them (config.json and the weights beside it), read and written."""

import contextlib
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from gpt_jax.errors import UserError
from gpt_jax.models.config import ModelConfig
from gpt_jax.parallel.runtime import do_on_main_process, is_main_process
from gpt_jax.progress import byte_progress, say
from gpt_jax.weights.export import export_tensors, new_folder, refuse_existing
from gpt_jax.weights.huggingface_config import read_config, write_config
from gpt_jax.weights.safetensors_file import read_safetensors
from gpt_jax.weights.tensors import Checkpoint, LazyTensor, unreadable
from gpt_jax.weights.torch_file import read_torch_file

DTYPES = ("float32", "bfloat16", "float16", "float64")  # of an export
BYTES_PER_FILE = 2_000_000_000  # of an export; this much stands in host memory at once

# Buffers that older versions of transformers saved with the weights: (name, number of dimensions).
_BUFFERS = (
    (r"h\.\d+\.attn\.bias", 4),  # the causal mask
    (r"h\.\d+\.attn\.masked_bias", 0),  # what a masked score is replaced with
    (r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq", 1),
)
_ROWS_AT_ONCE = 4096  # of two matrices that are compared
_OTHER_HEADS = re.compile(r"(multiple_choice_head|score|classifier)\.")


def read_folder(folder: Path) -> Checkpoint:
    """A model folder: config.json, and the weights as safetensors or PyTorch files, in one file or several.

    Architectures: those of `huggingface_config.ARCHITECTURES`, with or without an output layer; the names with and
    without the prefix of the base model. Left out: buffers that can be computed, an `lm_head.weight` that is tied to
    the token embeddings (it is said if it differs from them), and the heads of other tasks (it is said which).

    Raises:
      UserError: when files are missing or damaged, or the architecture is not computed here.
    """
    folder = Path(folder)
    path = folder / "config.json"
    with unreadable(path, "the configuration of a model"):
        values = dict(json.loads(path.read_text()))
    architecture, config = read_config(values, path)
    tensors: dict[str, LazyTensor] = {}
    for name, tensor in _all_tensors(folder).items():
        name = name.removeprefix(architecture.prefix)
        if name in tensors:
            raise UserError(f"{folder}: both {tensors[name].name} and {tensor.name} are there; expected one of them.")
        tensors[name] = tensor
    others = [name for name in tensors if _OTHER_HEADS.match(name)]
    if others and is_main_process():
        say(f"{folder}: left behind, since they belong to another task's head: {', '.join(others)}")
    left_out = {name for name, tensor in tensors.items() if _is_buffer(name, tensor)}.union(others)
    if config.tied_output:
        head, embedding = (architecture.layout[f"{room}/tokens"].name for room in ("unembedding", "embedding"))
        left_out.add(head)
        if is_main_process() and {head, embedding} <= tensors.keys() and _differ(tensors[head], tensors[embedding]):
            say(
                f"{folder}: {head} is left behind and the token embedding put in its place, since config.json says "
                '"tie_word_embeddings": true, but the two differ. If the model was trained with both, set it to false.'
            )
    kept = {name: tensor for name, tensor in tensors.items() if name not in left_out}
    has_prefix = any(tensor.name.startswith(architecture.prefix) for tensor in tensors.values())
    return Checkpoint(
        folder, config, architecture.layout, kept, values, prefix=architecture.prefix if has_prefix else ""
    )


def _differ(one: LazyTensor, other: LazyTensor) -> bool:
    """Whether two matrices differ in any bit; read a block of rows at a time."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return True
    a, b = np.atleast_1d(one.read(), other.read())
    return any(
        a[row : row + _ROWS_AT_ONCE].tobytes() != b[row : row + _ROWS_AT_ONCE].tobytes()
        for row in range(0, len(a), _ROWS_AT_ONCE)
    )


def _is_buffer(name: str, tensor: LazyTensor) -> bool:
    return any(re.fullmatch(pattern, name) and len(tensor.shape) == dims for pattern, dims in _BUFFERS)


def _all_tensors(folder: Path) -> dict[str, LazyTensor]:
    for name, read in (("model.safetensors", read_safetensors), ("pytorch_model.bin", read_torch_file)):
        index = folder / f"{name}.index.json"
        if index.exists():
            with unreadable(index, "an index of weight files"):
                files = set(json.loads(index.read_text())["weight_map"].values())
                if strange := [file for file in files if not isinstance(file, str)]:
                    raise ValueError(f"weight_map gives a tensor the file {strange[0]!r}")
            return {name: tensor for file in sorted(files) for name, tensor in read(folder / file).items()}
        if (folder / name).exists():
            return read(folder / name)
    raise UserError(
        f"{folder}: no weights. Expected model.safetensors or pytorch_model.bin, or one of them with .index.json and "
        "the files that it lists."
    )


def write_folder(
    params: Mapping,
    config: ModelConfig,
    folder: Path,
    *,
    dtype: str | None = None,
    special_ids: Mapping[str, int] | None = None,
    add_files: Callable[[Path], None] | None = None,
    bytes_per_file: int = BYTES_PER_FILE,
) -> None:
    """Writes a model folder that transformers loads as its own: config.json and safetensors.

    The folder appears whole or not at all. Called by every process where the parameters live on several; the first
    one writes.

    Args:
      dtype: of the tensors, one of `DTYPES`; that of the parameters by default.
      special_ids: ids for config.json: `bos_token_id`, `eos_token_id`, `pad_token_id`.
      add_files: called with the folder before it gets its name: to put the tokenizer's files there.
      bytes_per_file: more than this, and the weights are divided over files with an index.

    Raises:
      UserError: when no architecture of transformers computes this config (the message names the fields in the way),
        the dtype is none of these or too narrow for a value, or the folder exists and is not empty.
    """
    folder = Path(folder)
    if dtype not in (None, *DTYPES):
        raise UserError(f"dtype={dtype!r}: expected one of {', '.join(DTYPES)}.")
    architecture, values = write_config(config)
    do_on_main_process(lambda: refuse_existing(folder))
    tensors = export_tensors(params, config, architecture.layout)
    if dtype is None:
        dtype = str(next(iter(tensors.values())).dtype)
    # Defaults that only fit the released vocabularies are spelled out as null.
    values |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None, **(special_ids or {})}
    values |= {"torch_dtype": dtype}
    itemsize = jnp.dtype(dtype).itemsize
    sizes = {name: math.prod(tensor.shape) * itemsize for name, tensor in tensors.items()}
    head = architecture.layout["unembedding/tokens"].name
    written_names = {name: name if name == head else architecture.prefix + name for name in tensors}
    files = _divide(sizes, bytes_per_file)
    with (
        new_folder(folder) if is_main_process() else contextlib.nullcontext() as temporary,
        byte_progress(f"Writing {folder.name}", sum(sizes.values()), enabled=is_main_process()) as advance,
    ):
        for file, names in files.items():
            arrays = {}
            for name in names:
                arrays[written_names[name]] = _cast(tensors[name].read(), jnp.dtype(dtype), written_names[name])
                advance(sizes[name])
            if temporary is not None:
                safetensors.numpy.save_file(arrays, temporary / file, metadata={"format": "pt"})
                (temporary / file).chmod(0o644)  # the library's own files are for their owner only
        if temporary is not None:
            if len(files) > 1:
                index = {written_names[name]: file for file, names in files.items() for name in names}
                total = {"total_size": sum(sizes.values())}
                _write_json(temporary / "model.safetensors.index.json", {"metadata": total, "weight_map": index})
            _write_json(temporary / "config.json", values)
            if add_files is not None:
                add_files(temporary)


def _cast(values: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    """`values` in another dtype. UserError: one of them is too large for it."""
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(values, dtype)
    if cast.dtype != values.dtype and (overflowed := np.isinf(cast) & np.isfinite(values)).any():
        largest, limit = float(np.max(np.abs(values[overflowed]))), float(jnp.finfo(dtype).max)
        raise UserError(
            f"{name}: its largest value, {largest:g}, does not fit into dtype={dtype} (at most {limit:g}). Nothing is "
            "written; use bfloat16 or float32."
        )
    return cast


def _divide(sizes: Mapping[str, int], bytes_per_file: int) -> dict[str, list[str]]:
    """File name -> tensors, in order, each file as full as `bytes_per_file` allows."""
    groups, filled = [[]], 0
    for name, size in sizes.items():
        if groups[-1] and filled + size > bytes_per_file:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    return {f"model-{i:05}-of-{len(groups):05}.safetensors": names for i, names in enumerate(groups, 1)}


def _write_json(path: Path, values: Mapping) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")
