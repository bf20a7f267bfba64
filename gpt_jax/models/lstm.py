"""Layers of an LSTM in the place of a transformer's: what GPT-1's table 5 compares with (Radford et al. 2018, §5).

The cell is Hochreiter & Schmidhuber's (1997) with the forget gate of Gers et al. (2000), no peepholes. Shape suffixes
as in layers.py; G: the four gates, G = 4U, in PyTorch's order: input, forget, cell, output.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from gpt_jax.models import layers
from gpt_jax.models.config import ModelConfig
from gpt_jax.models.parameters import ParameterSpec
from gpt_jax.parallel.rules import constrain


def layer_specs(config: ModelConfig) -> dict:
    """Shapes and initializers of all layers, stacked.

    Kernels have the variance of U(-1/√U, 1/√U) (Merity et al. 2018, "Regularizing and Optimizing LSTM Language Models",
    §5; PyTorch's default too). The forget gate's bias is 1, so that a fresh cell remembers (Jozefowicz et al. 2015, "An
    Empirical Exploration of Recurrent Network Architectures", §2.2); the others are 0.
    """
    L, D, U = config.num_layers, config.embed_dim, config.lstm_width
    std = 1 / math.sqrt(3 * U)
    return {
        "lstm": {
            "input": {
                "kernel": ParameterSpec((L, D, 4 * U), std),
                "bias": ParameterSpec((L, 4 * U), mean=(0.0, 1.0, 0.0, 0.0)),
            },
            "recurrent": {"kernel": ParameterSpec((L, U, 4 * U), std)},
            "output": {"kernel": ParameterSpec((L, U, D), std)},
        }
    }


def block(
    x_BTD: jax.Array,
    params: dict,
    config: ModelConfig,
    key: jax.Array | None = None,
    *,
    states: Callable[[jax.Array, dict], jax.Array] | None = None,
) -> jax.Array:
    """One layer: the states, projected back to the model's width; on top of x where there are several layers.

    Args:
      key: switches on the residual dropout, on the layer's output.
      states: what stands in the place of `states_from_zero`, with its signature (incremental.py: from a cache).
    """
    states_BTU = (states or states_from_zero)(x_BTD, params["lstm"])
    y_BTD = layers.linear(states_BTU, params["lstm"]["output"])
    y_BTD = layers.dropout(y_BTD, config.dropout_rate("residual"), key)
    return constrain(x_BTD + y_BTD if config.num_layers > 1 else y_BTD, "batch", "time", None)


def blocks(config: ModelConfig) -> tuple[Callable, ...]:
    """The period of the layers: all are alike."""
    return (functools.partial(block, config=config),)


def states_from_zero(x_BTD: jax.Array, params: dict) -> jax.Array:
    """The LSTM's state after each token, from zero before the first: [B, T, U] in x's dtype."""
    # The recurrence wants all of the time and all of the kernel on every device: what is divided is brought together
    # here, once, and not in each of its steps.
    x_TBD = constrain(jnp.swapaxes(x_BTD, 0, 1), None, "batch", None)
    inputs_TBG = layers.linear(x_TBD, params["input"])
    kernel_UG = constrain(params["recurrent"]["kernel"].astype(x_BTD.dtype), None, None)
    states_TBU = recurrence(inputs_TBG, kernel_UG)
    return constrain(jnp.swapaxes(states_TBU, 0, 1), "batch", "time", None)


@jax.custom_vjp
def recurrence(inputs_TBG: jax.Array, kernel_UG: jax.Array) -> jax.Array:
    """States of all times, [T, B, U] in the inputs' dtype; the cell is float32 (or wider).

        i, f, g, o = σ, σ, tanh, σ (inputs[t] + h[t-1] kernel);  c[t] = f c[t-1] + i g;  h[t] = o tanh(c[t])

    The gradient is written out below so that the kernel's is one product over all times behind the loop; autodiff would
    read and write all of it at every step.

    Args:
      inputs_TBG: the inputs' share of the pre-activations, bias included.
    """
    return _recurrence_forward(inputs_TBG, kernel_UG)[0]


def one_step(
    inputs_BG: jax.Array, state_BU: jax.Array, cell_BU: jax.Array, kernel_UG: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """State and cell after one more token, and its gates; state and gates in the inputs' dtype, the cell in its own."""
    sums_BG = inputs_BG + jnp.matmul(state_BU, kernel_UG, preferred_element_type=cell_BU.dtype)
    i, f, g, o = jnp.split(sums_BG, 4, axis=-1)
    i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
    cell_BU = f * cell_BU + i * g
    state_BU = (o * jnp.tanh(cell_BU)).astype(inputs_BG.dtype)
    return state_BU, cell_BU, jnp.concatenate([i, f, g, o], axis=-1).astype(inputs_BG.dtype)


def _recurrence_forward(inputs_TBG, kernel_UG):
    dtype, wide = inputs_TBG.dtype, jnp.promote_types(inputs_TBG.dtype, jnp.float32)

    def step(carry, inputs_BG):
        state_BU, cell_BU, gates_BG = one_step(inputs_BG, *carry, kernel_UG)
        return (state_BU, cell_BU), (state_BU, cell_BU, gates_BG)

    zeros_BU = jnp.zeros((inputs_TBG.shape[1], kernel_UG.shape[0]), wide)
    _, (states_TBU, cells_TBU, gates_TBG) = jax.lax.scan(step, (zeros_BU.astype(dtype), zeros_BU), inputs_TBG)
    return states_TBU, (states_TBU, cells_TBU, gates_TBG, kernel_UG)


def _recurrence_backward(residuals, gradient_TBU):
    states_TBU, cells_TBU, gates_TBG, kernel_UG = residuals
    dtype, wide = states_TBU.dtype, cells_TBU.dtype

    def step(carry, inputs):
        """`carry`: the gradients of h[t] and c[t] that come from later times."""
        state_gradient_BU, cell_gradient_BU = carry
        output_gradient_BU, cell_BU, previous_cell_BU, gates_BG = inputs
        i, f, g, o = jnp.split(gates_BG.astype(wide), 4, axis=-1)
        tanh_cell_BU = jnp.tanh(cell_BU)
        state_gradient_BU = state_gradient_BU + output_gradient_BU
        cell_gradient_BU = cell_gradient_BU + state_gradient_BU * o * (1 - tanh_cell_BU**2)
        sums_gradient_BG = jnp.concatenate(
            [
                cell_gradient_BU * g * i * (1 - i),
                cell_gradient_BU * previous_cell_BU * f * (1 - f),
                cell_gradient_BU * i * (1 - g**2),
                state_gradient_BU * tanh_cell_BU * o * (1 - o),
            ],
            axis=-1,
        ).astype(dtype)
        state_gradient_BU = jnp.matmul(sums_gradient_BG, kernel_UG.T, preferred_element_type=wide)
        return (state_gradient_BU, cell_gradient_BU * f), sums_gradient_BG

    zeros_BU = jnp.zeros(cells_TBU.shape[1:], wide)
    inputs = (gradient_TBU, cells_TBU, _previous(cells_TBU), gates_TBG)
    _, sums_gradient_TBG = jax.lax.scan(step, (zeros_BU, zeros_BU), inputs, reverse=True)
    kernel_gradient_UG = jnp.einsum(
        "tbu,tbg->ug", _previous(states_TBU), sums_gradient_TBG, preferred_element_type=wide
    )
    return sums_gradient_TBG, kernel_gradient_UG.astype(kernel_UG.dtype)


recurrence.defvjp(_recurrence_forward, _recurrence_backward)


def _previous(x_TBU: jax.Array) -> jax.Array:
    """At each time the value of the time before; at the first zero."""
    return jnp.pad(x_TBU[:-1], ((1, 0), (0, 0), (0, 0)))
