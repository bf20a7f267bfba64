"""Checkpoint -> parameters on the devices, tensor by tensor."""

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from itertools import groupby

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax.errors import UserError
from gpt_jax.models import decoder
from gpt_jax.models.config import ModelConfig
from gpt_jax.parallel.rules import path_string, tree_shardings
from gpt_jax.progress import byte_progress
from gpt_jax.weights.layouts import Slot, slots
from gpt_jax.weights.tensors import Checkpoint, LazyTensor

_NAMES_IN_A_MESSAGE = 8


def load_parameters(checkpoint: Checkpoint, mesh: jax.sharding.Mesh) -> dict:
    """Reads a checkpoint straight into the sharded parameter tree of `decoder.parameter_specs(checkpoint.config)`.

    Each device gets its own slice, cast to `config.param_dtype`; a process reads only what its devices hold. On the
    host stand never more than the parameters that live there and about one tensor.

    Raises:
      UserError: before anything is read, when tensors are missing, left over, or of another shape or kind than the
        config says; all are named.
    """
    config = checkpoint.config
    check_tensors(checkpoint)
    dtype = jnp.dtype(config.param_dtype)
    abstract = jax.tree.map(
        lambda spec: jax.ShapeDtypeStruct(spec.shape, dtype),
        decoder.parameter_specs(config),
        is_leaf=lambda leaf: isinstance(leaf, decoder.ParameterSpec),
    )
    shardings = {
        path_string(path): sharding
        for path, sharding in jax.tree_util.tree_leaves_with_path(tree_shardings(abstract, mesh))
    }
    total = decoder.parameter_count(config) * dtype.itemsize
    leaves = {}
    with byte_progress(f"Loading {checkpoint.path.name}", total, enabled=jax.process_index() == 0) as advance:
        for path, leaf_slots in groupby(slots(config, checkpoint.layout), key=lambda slot: slot.path):
            leaves[path] = _load_leaf(leaf_slots, checkpoint.tensors, config, dtype, shardings[path], advance)
    return jax.tree_util.tree_map_with_path(lambda path, _: leaves[path_string(path)], abstract)


def _load_leaf(
    leaf_slots: Iterable[Slot],
    tensors: Mapping[str, LazyTensor],
    config: ModelConfig,
    dtype: jnp.dtype,
    sharding: jax.sharding.NamedSharding,
    advance: Callable[[int], None],
) -> jax.Array:
    """One leaf of the tree; a stacked one layer by layer, each written into the stack where it lies."""
    one_layer = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec(*sharding.spec[1:]))
    stack = None
    for slot in leaf_slots:
        value = _put(slot, tensors[slot.name], dtype, sharding if slot.layer is None else one_layer)
        advance(math.prod(slot.shape) * dtype.itemsize)
        if slot.layer is None:
            return value
        if stack is None:
            stack = jnp.zeros((config.num_layers, *slot.shape), dtype, device=sharding)
        # Waiting keeps the reader from running ahead of the devices with a queue of tensors in host memory.
        stack = jax.block_until_ready(_write_layer(stack, value, slot.layer, sharding))
    return stack


@functools.partial(jax.jit, donate_argnames="stack", static_argnames="sharding")
def _write_layer(stack: jax.Array, value: jax.Array, layer: int, sharding: jax.sharding.NamedSharding) -> jax.Array:
    written = jax.lax.dynamic_update_index_in_dim(stack, value, layer, 0)
    return jax.lax.with_sharding_constraint(written, sharding)


def _put(slot: Slot, tensor: LazyTensor, dtype: jnp.dtype, sharding: jax.sharding.NamedSharding) -> jax.Array:
    ours = slot.ours(tensor.read())
    # A copy even where the dtype is right: on a CPU, JAX may keep the array that it is given, and a parameter must not
    # change with the file it came from.
    return jax.make_array_from_callback(slot.shape, sharding, lambda index: np.array(ours[index], dtype, order="C"))


def check_tensors(checkpoint: Checkpoint) -> None:
    """Refuses a checkpoint whose tensors are not exactly those of its config.

    Raises:
      UserError: naming the tensors that are missing, left over, mis-shaped or not of a floating-point dtype.
    """
    expected = {slot.name: slot.their_shape for slot in slots(checkpoint.config, checkpoint.layout)}
    tensors = checkpoint.tensors
    problems = {
        "missing": [
            f"{checkpoint.name_in_file(name)} {list(shape)}" for name, shape in expected.items() if name not in tensors
        ],
        "not part of this model": [f"{t.name} {list(t.shape)}" for name, t in tensors.items() if name not in expected],
        "of another shape": [
            f"{tensors[name].name} is {list(tensors[name].shape)}, expected {list(shape)}"
            for name, shape in expected.items()
            if name in tensors and tensors[name].shape != shape
        ],
        "not of a floating-point dtype (a quantised checkpoint?)": [
            f"{tensors[name].name} is {tensors[name].dtype}"
            for name in expected
            if name in tensors and not jnp.issubdtype(tensors[name].dtype, jnp.floating)
        ],
    }
    lines = [f"{len(names)} {kind}: {_first(names)}" for kind, names in problems.items() if names]
    if lines:
        raise UserError(
            f"{checkpoint.path}: the tensors are not those of the model that its configuration describes.\n  "
            + "\n  ".join(lines)
            + "\nIs the file whole, and does its configuration belong to it?"
        )


def _first(names: list[str]) -> str:
    more = f"; and {len(names) - _NAMES_IN_A_MESSAGE} more" if len(names) > _NAMES_IN_A_MESSAGE else ""
    return "; ".join(names[:_NAMES_IN_A_MESSAGE]) + more
