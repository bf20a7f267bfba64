"""Everything that a run carries from one step to the next: one pytree."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from gpt_jax.parallel.rules import tree_shardings


class TrainState(flax.struct.PyTreeNode):
    """The state of training.

    Attributes:
      step: int32 scalar, updates made so far. The position in the data and every random key follow from it.
      params: nested dict of arrays.
      opt_state: Optax's.
      aux: what a kind of run adds (an average of the weights, a KL coefficient); a dict of arrays.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    aux: dict = flax.struct.field(default_factory=dict)


def initial_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state of step 0 with these parameters."""
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params))


def state_builder(
    init_params: Callable[[jax.Array], Any], optimizer: optax.GradientTransformation, seed: int
) -> Callable[[], TrainState]:
    """A function without arguments that makes the state of step 0; trace it for shapes, or run it."""
    return lambda: initial_state(init_params(jax.random.key(seed)), optimizer)


def abstract_state(build: Callable[[], TrainState], mesh: jax.sharding.Mesh) -> TrainState:
    """The state as shapes, dtypes and shardings, without making any of it."""
    with jax.set_mesh(mesh):
        shapes = jax.eval_shape(build)
    shardings = tree_shardings(shapes, mesh)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def create_state(build: Callable[..., TrainState], abstract: TrainState, mesh: jax.sharding.Mesh, *given) -> TrainState:
    """Makes the state of step 0, every array drawn where it lives: no device ever holds it whole.

    Args:
      given: arrays that `build` takes, whose memory it may keep: parameters that were loaded.
    """
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    with jax.set_mesh(mesh):
        return jax.jit(build, out_shardings=shardings, donate_argnums=tuple(range(len(given))))(*given)
