"""Trees of parameters: described before they exist, drawn, and taken apart by layers."""

import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gpt_jax.parallel.rules import path_string


class ParameterSpec(NamedTuple):
    """One parameter before it exists: its shape, and the standard deviation (0: the constant `mean`) of its draw.

    A tuple as `mean` gives each of as many equal pieces of the last axis its own.
    """

    shape: tuple[int, ...]
    std: float = 0.0
    mean: float | tuple[float, ...] = 0.0


def init_parameters(specs: dict, key: jax.Array, dtype: jnp.dtype) -> dict:
    """Draws a tree of parameters; each from a key of its own path, so that adding one leaves the others unchanged."""

    def draw(path, spec: ParameterSpec) -> jax.Array:
        means = jnp.atleast_1d(jnp.array(spec.mean, dtype))
        mean = jnp.broadcast_to(jnp.repeat(means, spec.shape[-1] // means.size), spec.shape)
        if spec.std == 0.0:
            return mean
        leaf_key = jax.random.fold_in(key, zlib.crc32(path_string(path).encode()))
        return mean + spec.std * jax.random.normal(leaf_key, spec.shape, dtype)

    return jax.tree_util.tree_map_with_path(draw, specs, is_leaf=lambda leaf: isinstance(leaf, ParameterSpec))


def unstack(stacked: dict, num_layers: int) -> list[dict]:
    """The layers of a stacked tree, one by one. By `split`, whose gradient is one concatenation; that of indexing is a
    sum of as many zero-padded stacks as there are layers."""
    leaves, tree = jax.tree.flatten(stacked)
    split = [[part[0] for part in jax.lax.split(leaf, [1] * num_layers)] for leaf in leaves]
    return [tree.unflatten(leaves_of_one) for leaves_of_one in zip(*split, strict=True)]
