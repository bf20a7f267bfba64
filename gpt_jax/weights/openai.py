"""OpenAI's own release of GPT-1 (openai/finetune-transformer-lm, folder `model`), read and written.

`params_shapes.json` lists the shapes of 2 + 12 · layers arrays: positions, tokens, then of each layer the twelve of
`_IN_A_LAYER`. `params_0.npy` ... `params_9.npy` are slices, flat and float32, of all these arrays laid end to end; an
array may begin in one file and end in the next. Kernels have a first axis of 1 (a convolution of width one), which is
dropped here. The release knows no special symbols: fine-tuning appends their rows.
"""

import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gpt_jax.errors import UserError
from gpt_jax.models.config import ModelConfig
from gpt_jax.models.presets import model_config, preset_fields
from gpt_jax.weights.export import differences, export_tensors, new_folder
from gpt_jax.weights.layouts import OPENAI_RELEASE
from gpt_jax.weights.tensors import Checkpoint, LazyTensor, described_model, unreadable

FILES = 10
RELEASED_HEADS = 12
_TOKENS = "model/we"
_BEFORE_THE_LAYERS = ("model/pe", _TOKENS)
_IN_A_LAYER = (
    "attn/c_attn/w", "attn/c_attn/b", "attn/c_proj/w", "attn/c_proj/b", "ln_1/g", "ln_1/b",
    "mlp/c_fc/w", "mlp/c_fc/b", "mlp/c_proj/w", "mlp/c_proj/b", "ln_2/g", "ln_2/b",
)  # fmt: skip


def _names(num_layers: int) -> list[str]:
    return [*_BEFORE_THE_LAYERS, *(f"model/h{layer}/{name}" for layer in range(num_layers) for name in _IN_A_LAYER)]


def read_openai(folder: Path, *, num_heads: int = RELEASED_HEADS) -> Checkpoint:
    """OpenAI's GPT-1 weights; nothing but the shapes is read.

    Args:
      num_heads: the files do not say.

    Raises:
      UserError: when a file is missing or cut short, or the shapes are not those of GPT-1's architecture.
    """
    folder = Path(folder)
    shapes_path = folder / "params_shapes.json"
    with unreadable(shapes_path, "a list of shapes"):
        shapes = [_shape(value) for value in json.loads(shapes_path.read_text())]
    num_layers = (len(shapes) - len(_BEFORE_THE_LAYERS)) // len(_IN_A_LAYER)
    names = _names(num_layers)
    if num_layers < 1 or len(names) != len(shapes) or any(len(shape) != 2 for shape in shapes[:2]):
        raise UserError(
            f"{shapes_path}: {len(shapes)} arrays, expected those of GPT-1: positions [T, D], tokens [V, D] and "
            "12 more for each layer (146 in the release)."
        )
    squeezed = [shape[1:] if len(shape) == 3 and shape[0] == 1 else shape for shape in shapes]
    (positions, width), (vocab_size, _) = shapes[:2]
    fields = preset_fields("gpt1") | dict(
        context_length=positions,
        vocab_size=vocab_size,
        embed_dim=width,
        num_layers=num_layers,
        num_heads=num_heads,
        mlp_dim=squeezed[names.index("model/h0/mlp/c_fc/w")][-1],
    )
    config = described_model(fields, shapes_path)
    files = [_open(folder / f"params_{index}.npy") for index in range(FILES)]
    ends = list(itertools.accumulate(math.prod(shape) for shape in shapes))
    found = sum(len(file) for file in files)
    if found != ends[-1]:
        raise UserError(
            f"{folder}: params_0.npy to params_{FILES - 1}.npy hold {found:,} numbers, expected "
            f"{ends[-1]:,} as params_shapes.json says. Fetch the folder again."
        )
    tensors = {
        name: LazyTensor(name, shape, np.dtype(np.float32), functools.partial(_read, files, begin, end, shape))
        for name, shape, begin, end in zip(names, squeezed, [0, *ends], ends, strict=False)
    }
    return Checkpoint(folder, config, OPENAI_RELEASE, tensors, {})


def _shape(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not value or any(type(size) is not int or size < 1 for size in value):
        raise ValueError(f"{json.dumps(value)} is not the shape of an array")
    return tuple(value)


def _open(path: Path) -> np.ndarray:
    with unreadable(path, "one slice of OpenAI's parameters, a flat float32 array"):
        file = np.load(path, mmap_mode="r", allow_pickle=False)
        if file.ndim != 1 or file.dtype != np.float32:
            raise ValueError(f"an array {list(file.shape)} of {file.dtype}")
        return file


def _read(files: list[np.ndarray], begin: int, end: int, shape: tuple[int, ...]) -> np.ndarray:
    """Elements `begin` to `end` of the files laid end to end; a view where they lie in one file."""
    pieces, start = [], 0
    for file in files:
        stop = start + len(file)
        if begin < stop and start < end:
            pieces.append(file[max(begin - start, 0) : end - start])
        start = stop
    return (pieces[0] if len(pieces) == 1 else np.concatenate(pieces)).reshape(shape)


def write_openai(
    params: Mapping,
    config: ModelConfig,
    folder: Path,
    *,
    num_heads: int = RELEASED_HEADS,
    vocab_size: int | None = None,
    add_files: Callable[[Path], None] | None = None,
) -> None:
    """Writes GPT-1 weights as OpenAI released them, so that its own train.py and others' importers can read them.

    Where the release cuts its ten slices is not kept: the cuts here make them equal to one element.

    Args:
      num_heads: what whoever reads the files will take it to be, since they do not say.
      vocab_size: rows of the token embedding to write; the symbols for fine-tuning, which the release lacks, are
        behind. All by default.
      add_files: called with the folder before it gets its name: to put the tokenizer's files there.

    Raises:
      UserError: when the config is not GPT-1's architecture, has another number of heads than is said or fewer rows,
        or the folder exists and is not empty.
    """
    gpt1 = model_config(
        "gpt1",
        **{name: getattr(config, name) for name in ("vocab_size", "context_length", "num_layers", "num_heads")},
        embed_dim=config.embed_dim,
        mlp_dim=config.mlp_width,
    )
    if obstacles := differences(config, gpt1):
        raise UserError(f"OpenAI's release holds GPT-1 only; in the way stand {', '.join(obstacles)}.")
    if config.num_heads != num_heads:
        raise UserError(
            f"model.num_heads={config.num_heads} cannot be written: OpenAI's files do not say how many heads a model "
            f"has, and whoever reads them takes {num_heads}. Write another format, such as Hugging Face's."
        )
    vocab_size = config.vocab_size if vocab_size is None else vocab_size
    if not 1 <= vocab_size <= config.vocab_size:
        raise UserError(f"vocab_size={vocab_size}: expected 1 to {config.vocab_size}, the rows of the model.")
    tensors = export_tensors(params, config, OPENAI_RELEASE)
    tensors[_TOKENS] = _first_rows(tensors[_TOKENS], vocab_size)
    names = _names(config.num_layers)
    shapes = [[1, *tensors[name].shape] if name.endswith("/w") else [*tensors[name].shape] for name in names]
    size, larger = divmod(sum(map(math.prod, shapes)), FILES)
    with new_folder(Path(folder)) as temporary:
        (temporary / "params_shapes.json").write_text(json.dumps(shapes))
        values = (tensors[name].read().astype("<f4").reshape(-1) for name in names)
        rest = np.empty(0, "<f4")
        for index in range(FILES):
            left = size + (index < larger)
            with open(temporary / f"params_{index}.npy", "wb") as file:
                header = {"descr": "<f4", "fortran_order": False, "shape": (left,)}
                np.lib.format.write_array_header_1_0(file, header)
                while left:
                    rest = rest if len(rest) else next(values)
                    piece, rest = rest[:left], rest[left:]
                    file.write(piece.tobytes())
                    left -= len(piece)
        if add_files is not None:
            add_files(temporary)


def _first_rows(tensor: LazyTensor, count: int) -> LazyTensor:
    return dataclasses.replace(tensor, shape=(count, *tensor.shape[1:]), read=lambda: tensor.read()[:count])
