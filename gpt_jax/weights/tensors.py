"""Checkpoints of other people before they are loaded: what they hold, and tensors that are read when asked for."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from gpt_jax.errors import UserError
from gpt_jax.models.config import ModelConfig
from gpt_jax.weights.layouts import Layout

_LARGEST_SIZE = 10**8
_MOST = {"num_layers": 10_000}


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """A tensor that is not read yet.

    `read()` returns it with this shape and dtype: a read-only view of a memory-mapped file where the format allows it,
    so that a slice costs no more than the slice.
    """

    name: str  # as it stands in the file
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Weights as some program wrote them, ready for `gpt_jax.weights.load.load_parameters`.

    To load it in another way (a parameter dtype, dropout rates), replace the config.
    """

    path: Path
    config: ModelConfig
    layout: Layout
    tensors: Mapping[str, LazyTensor]  # by the names of the layout
    metadata: Mapping[str, Any]  # what else the format says: the fields of config.json, the keys of a GGUF
    prefix: str = ""  # of the names in the file, which those of the layout lack; the output matrix has none

    def name_in_file(self, name: str) -> str:
        """What a tensor of the layout is, or would be, called in the file."""
        is_output = "unembedding/tokens" in self.layout and name == self.layout["unembedding/tokens"].name
        return name if is_output else self.prefix + name


def described_model(fields: Mapping[str, Any], path: Path) -> ModelConfig:
    """The ModelConfig that the file `path` describes.

    Raises:
      UserError: naming the file, when the fields do not make a model; among them sizes beyond any model's, which would
        make a damaged file run out of memory or time instead.
    """
    for field in dataclasses.fields(ModelConfig):
        value, most = fields.get(field.name), _MOST.get(field.name, _LARGEST_SIZE)
        if type(value) is int and value > most:
            raise UserError(f"{path}: model.{field.name}={value}: expected at most {most:,}. Is the file damaged?")
    try:
        return ModelConfig(**fields)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


@contextmanager
def unreadable(path: Path, what: str) -> Iterator[None]:
    """Turns any failure to parse `path` into a UserError: the bytes of a file are its owner's, not our bug.

    Only for code that looks at nothing but the file; the original exception stays as the cause.
    """
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); expected {what}.") from error
    except Exception as error:
        with open(path, "rb") as file:
            is_pointer = file.read(24).startswith(b"version https://git-lfs")
        if is_pointer:
            raise UserError(
                f"{path}: a Git LFS pointer, not the weights themselves. Fetch them with `git lfs pull`."
            ) from error
        raise UserError(
            f"{path}: not {what}, or cut short ({path.stat().st_size:,} bytes): {error or type(error).__name__}. "
            "Fetch the file again, or compare its size with the original's."
        ) from error
