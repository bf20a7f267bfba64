"""The FLOPs of splash attention, told from the operands of its calls."""

import functools

import jax
import jax.extend
import jax.numpy as jnp
import pytest

from gpt_jax.models.attention_kernels import splash_attention
from gpt_jax.planning.splash import PRODUCTS, splash_flops

TABLE = "s8[1,{},{}]{{2,1,0:T(4,128)(4,1)}}"
ROWS = ["bf16[2,16,2048,128]{3,2,1,0}"] * 3 + ["s32[2048,128]{1,0}"]


@pytest.mark.parametrize(("kernel", "products"), PRODUCTS.items())
def test_causal_attention_visits_the_blocks_up_to_the_diagonal(kernel, products):
    table = TABLE.format(4, 4)
    flops = splash_flops(f"{kernel}_no_residuals.3", [table, table, *ROWS])
    assert flops == products * 2 * (2 * 16) * (10 * 512 * 512) * 128


def test_a_band_visits_the_columns_of_its_table():
    table = TABLE.format(4, 2)
    flops = splash_flops("splash_mha_fwd_residuals", [table, table, *ROWS])
    assert flops == 2 * 2 * (2 * 16) * (8 * 512 * 512) * 128


def test_narrow_heads_take_as_long_as_a_matrix_unit_is_wide():
    table, rows = TABLE.format(1, 1), ["bf16[4,25,512,64]{3,2,1,0}"] * 3
    assert splash_flops("splash_mha_dq.1", [table, *rows]) == 3 * 2 * 4 * 25 * 512**2 * 128


def test_another_kernel_is_not_known():
    assert splash_flops("my_kernel.1", ROWS) is None


@pytest.mark.parametrize(("window", "columns"), [(0, 4), (256, 2)])
def test_the_kernels_have_the_names_and_the_table_that_are_read(window, columns):
    """The first operands of JAX's own calls, forward and backward, at T = 2,048: tables of [1, 4, `columns`]."""
    q_BTNH = jax.ShapeDtypeStruct((2, 2048, 3, 64), jnp.bfloat16)
    attend = functools.partial(splash_attention, window=window, interpret=True)
    with jax.set_mesh(jax.make_mesh((1, 1, 1, 1), ("data", "fsdp", "tensor", "sequence"), devices=jax.devices()[:1])):
        gradient = jax.grad(lambda q, k, v: jnp.sum(attend(q, k, v).astype(jnp.float32)), argnums=(0, 1, 2))
        jaxpr = jax.make_jaxpr(gradient)(q_BTNH, q_BTNH, q_BTNH)
    calls = dict(pallas_calls(jaxpr.jaxpr))
    assert len(calls) == len(PRODUCTS)
    for name, shapes in calls.items():
        assert any(name.startswith(kernel) for kernel in PRODUCTS)
        tables = [shape for shape in shapes if shape.startswith("s8")]
        assert sorted(map(int, tables[0][3:-1].split(","))) == sorted((1, 4, columns))
        assert splash_flops(name, shapes) > 0


def pallas_calls(jaxpr):
    """(name, the operands' shapes as in HLO) of the Pallas calls anywhere in a jaxpr."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            name = equation.params["name"]
            shapes = [x.aval for x in equation.invars]
            types = {"int8": "s8", "int32": "s32", "float32": "f32", "bfloat16": "bf16"}
            yield name, [f"{types[x.dtype.name]}[{','.join(map(str, x.shape))}]" for x in shapes]
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from pallas_calls(inner)
