"""One step of training: (state, batch) -> (state, metrics)."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from gpt_jax.parallel.devices import compiler_options
from gpt_jax.parallel.rules import constrain
from gpt_jax.training.state import TrainState

Batch = dict[str, jax.Array]
# (params, batch, dropout key) -> (sum of the losses, sum of their weights); the loss of a step is their quotient. Or,
# in the place of the second, {"weight": that sum, NAME: another sum}; its quotient is the metric NAME.
LossFunction = Callable[[Any, Batch, jax.Array], tuple[jax.Array, jax.Array | dict[str, jax.Array]]]
StepFunction = Callable[..., tuple[TrainState, dict[str, jax.Array]]]  # (state, batch[, seed])


def train_step(
    state: TrainState,
    batch: Batch,
    seed: jax.Array | int,
    *,
    loss_fn: LossFunction,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    accumulation: int,
    frozen: Any = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update; a pure function.

    With `accumulation` = A > 1 the batch is worked off in A parts whose gradients add up to the whole batch's.

    Args:
      seed: of dropout, from 0 to 2**32 - 1; together with the step it makes the key.
      frozen: None, or a tree like the parameters with 1 where they learn and 0 where they stay (arrays that broadcast).

    Returns:
      The next state, and float32 scalars: `loss` (of this batch, before the update), `gradient_norm` (before
      clipping), `learning_rate`, and the metrics of `loss_fn`.
    """
    key = jax.random.fold_in(jax.random.key(seed), state.step)

    def loss_and_gradients(part: Batch, part_key: jax.Array):
        (loss, sums), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.params, part, part_key)
        return loss, sums if isinstance(sums, dict) else {"weight": sums}, gradients

    if accumulation == 1:
        loss, sums, gradients = loss_and_gradients(batch, key)
    else:

        def add_part(totals, part_and_index):
            part, index = part_and_index
            return jax.tree.map(jnp.add, totals, loss_and_gradients(part, jax.random.fold_in(key, index))), None

        def split(x: jax.Array) -> jax.Array:  # [B, ...] -> [A, B/A, ...], every part spread over all devices
            parts = jnp.moveaxis(x.reshape(x.shape[0] // accumulation, accumulation, *x.shape[1:]), 1, 0)
            inner = ["time"] if x.ndim == 2 else [None] * (x.ndim - 1)  # several sequences an example: none is divided
            return constrain(parts, None, "batch", *inner)

        parts = jax.tree.map(split, batch)
        first = jax.eval_shape(lambda parts: loss_and_gradients(jax.tree.map(lambda x: x[0], parts), key)[:2], parts)
        zeros = (
            *jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), first),
            jax.tree.map(jnp.zeros_like, state.params),
        )
        (loss, sums, gradients), _ = jax.lax.scan(add_part, zeros, (parts, jnp.arange(accumulation)))

    weight = sums.pop("weight")
    gradients = jax.tree.map(lambda g: g / weight, gradients)
    if frozen is not None:  # the gradients too, so that clipping does not count what stays
        gradients = jax.tree.map(jnp.multiply, gradients, frozen)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    if frozen is not None:  # weight decay moves what has no gradient
        updates = jax.tree.map(jnp.multiply, updates, frozen)
    metrics = {
        "loss": loss / weight,
        "gradient_norm": optax.tree.norm(gradients),
        "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
    } | {name: total / weight for name, total in sums.items()}
    params = optax.apply_updates(state.params, updates)
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics


def jit_train_step(abstract: TrainState, mesh: jax.sharding.Mesh, **settings) -> jax.stages.Wrapped:
    """`train_step` with `settings`, jitted: sharded like `abstract`, the old state's memory given to the new one.

    Call it, or lower it, inside `jax.set_mesh(mesh)`, with (state, batch, seed).
    """
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    replicated = NamedSharding(mesh, PartitionSpec())
    return jax.jit(
        functools.partial(train_step, **settings),
        donate_argnums=0,
        out_shardings=(shardings, replicated),
        compiler_options=compiler_options(mesh),
    )


def compile_train_step(abstract: TrainState, mesh: jax.sharding.Mesh, **settings) -> StepFunction:
    """`jit_train_step` as a function (state, batch, seed) -> (state, metrics).

    The seed is an argument, so that one compiled step serves every seed.
    """
    jitted = jit_train_step(abstract, mesh, **settings)

    def step(state: TrainState, batch: Batch, seed: int) -> tuple[TrainState, dict[str, jax.Array]]:
        with jax.set_mesh(mesh):
            return jitted(state, batch, np.uint32(seed))

    return step
