"""What of a model learns, and what stays as it was pretrained."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gpt_jax.parallel.rules import path_string


def frozen_mask(params: dict, layers: int = 0) -> Any:
    """1 for what learns, 0 for what stays as it is; None: everything learns.

    With adapters the whole decoder stays; else the embeddings and the first `layers` layers do. That goes for the rows
    of start, delimiter and extract too, which stay as they were drawn: the layers learn what they mean.

    Args:
      params: `model`, a decoder's parameters, with `adapters` or a `head` beside it, or none.
    """
    if not layers and "adapters" not in params:
        return None

    def mask(path: tuple, leaf: Any) -> jax.Array | float:
        name = path_string(path)
        if name.startswith("model/embedding") or (name.startswith("model/") and "adapters" in params):
            return 0.0
        if name.startswith("model/layers/"):
            return (jnp.arange(leaf.shape[0]) >= layers).astype(leaf.dtype).reshape(-1, *[1] * (leaf.ndim - 1))
        return 1.0

    return jax.tree_util.tree_map_with_path(mask, params)


def without_frozen(optimizer: optax.GradientTransformation, frozen: Any) -> optax.GradientTransformation:
    """`optimizer`, with no moments for what never learns."""
    if frozen is None:
        return optimizer
    return optax.masked(optimizer, jax.tree.map(lambda mask: np.ndim(mask) > 0 or mask > 0, frozen))
