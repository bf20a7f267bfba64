"""What every way out shares: parameters as other people's tensors, what stands in the way, a folder written whole."""

import contextlib
import dataclasses
import errno
import itertools
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from gpt_jax.errors import UserError
from gpt_jax.models.config import TRAINING_ONLY, ModelConfig
from gpt_jax.parallel.rules import path_string
from gpt_jax.weights.layouts import Layout, Slot, slots
from gpt_jax.weights.tensors import LazyTensor

# What a disk says when it cannot take a file; some libraries pass on the words only.
_DISK_REFUSES = (
    errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOENT, errno.ENAMETOOLONG,
)  # fmt: skip


def resolved(config: ModelConfig) -> ModelConfig:
    """The same model with every field spelled out that may be left to follow another, and unused ones at rest.

    Raises:
      UserError: when it is no transformer, which none of the formats of others holds.
    """
    if config.core != "transformer":
        raise UserError(
            f"model.core={config.core}: the formats of Hugging Face, GGUF and OpenAI that are written here hold "
            "transformers only. Keep the workdir, or make one (configs/convert.py:workdir): init_from and gpt_jax.load "
            "read it."
        )
    default = {field.name: field.default for field in dataclasses.fields(config)}
    unused = {
        "none": ("rope_factor", "rope_low_frequency_factor", "rope_high_frequency_factor", "rope_original_context"),
        "linear": ("rope_low_frequency_factor", "rope_high_frequency_factor", "rope_original_context"),
        "llama3": (),
    }[config.rope_scaling]
    if config.positions != "rotary":
        unused = [name for name in default if name.startswith("rope_")]
    if config.attention_pattern == "dense":
        unused = [*unused, "attention_window"]
    return dataclasses.replace(
        config,
        key_value_heads=config.kv_heads,
        head_dim=config.head_width,
        mlp_dim=config.mlp_width,
        **{f"{place}_dropout": config.dropout_rate(place) for place in ("embedding", "attention", "residual")},
        **{name: default[name] for name in unused},
    )


def differences(config: ModelConfig, other: ModelConfig) -> list[str]:
    """The fields, as `name=value`, in which `config` computes something else than `other`; empty: the same model."""
    ours, theirs = dataclasses.asdict(resolved(config)), dataclasses.asdict(resolved(other))
    return [
        f"{name}={value!r} (not {theirs[name]!r})"
        for name, value in ours.items()
        if value != theirs[name] and name not in TRAINING_ONLY
    ]


def export_tensors(params: Mapping, config: ModelConfig, layout: Layout) -> dict[str, LazyTensor]:
    """Our parameters as the tensors of `layout`; each is fetched from the devices when it is read.

    Where the parameters live on several processes, reading is a collective: all read the same tensors in one order.
    """
    leaves = {path_string(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    by_name: dict[str, list[Slot]] = {}
    for slot in slots(config, layout):
        by_name.setdefault(slot.name, []).append(slot)

    def lazy(name: str, pieces: list[Slot]) -> LazyTensor:
        pieces = sorted(pieces, key=lambda slot: slot.place.part)

        def read() -> np.ndarray:
            fetched = [_fetch(leaves[slot.path], slot.layer) for slot in pieces]
            theirs = [x.T if slot.place.transposed else x for slot, x in zip(pieces, fetched, strict=True)]
            return theirs[0] if len(theirs) == 1 else np.concatenate(theirs, axis=-1)

        return LazyTensor(name, pieces[0].their_shape, np.dtype(leaves[pieces[0].path].dtype), read)

    return {name: lazy(name, pieces) for name, pieces in by_name.items()}


def _fetch(leaf: jax.Array, layer: int | None) -> np.ndarray:
    """A leaf, or one layer of a stacked one, as an array of this host."""
    x = leaf if layer is None else jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False)
    return np.asarray(x) if x.is_fully_addressable else multihost_utils.process_allgather(x, tiled=True)


def refuse_existing(folder: Path) -> None:
    """Raises a UserError when something stands at `folder` already; an empty folder does not count."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder}: exists and is not empty; expected a new folder. Name another or remove it.")
    if folder.resolve() == Path.cwd():  # it would be replaced, and the shell left standing in the old one
        raise UserError(f"{folder}: is the folder in which this was started; expected a new one, such as ./export.")


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yields an empty folder to write into, which becomes `folder` at the end, or nothing where writing failed.

    Raises:
      UserError: when `folder` exists and is not empty, or the disk is full or may not be written.
    """
    refuse_existing(folder)
    target = folder.resolve()
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for path in itertools.chain(temporary.rglob("*"), [temporary]):
            _flush(path)
        os.replace(temporary, target)
        _flush(target.parent)
    except Exception as error:
        reason = next((text for text in map(os.strerror, _DISK_REFUSES) if text in str(error)), None)
        if reason is None or isinstance(error, UserError):
            raise
        raise UserError(
            f"{folder}: cannot be written ({reason}). Name a folder that you may write, on a disk that has room."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
