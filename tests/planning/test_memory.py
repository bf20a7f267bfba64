"""Where the memory of a step goes."""

import jax
import jax.numpy as jnp
from programs import FUSED, program

from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.parallel.rules import sharding
from gpt_jax.planning import hlo
from gpt_jax.planning.memory import shard_bytes, temporary_parts

V = 100
HBM, FAST = "{1,0:T(8,128)}", "{1,0:T(8,128)S(1)}"


def make(name, shape, operation, layout=HBM, operands="%p0"):
    """An instruction of training whose result stands in memory."""
    metadata = f'metadata={{op_name="{operation}"}}'
    return f"%{name} = f32[{shape}]{layout} fusion({operands}), kind=kLoop, calls=%fused, {metadata}"


STEP = [
    "%p0 = f32[8,16]{1,0:T(8,128)} parameter(0)",
    make("early", "1000,1000", "jit(f)/jvp()/exp"),  # gone when most is in memory
    make("small", "2,2", "jit(f)/jvp()/dot", operands="%early"),
    make("hidden", "10,10", "jit(f)/jvp()/tanh", operands="%small"),
    make("fast", "5000,5000", "jit(f)/jvp()/tanh", layout=FAST),
    "%copied = (f32[10,30]{1,0:T(8,128)}, f32[10,30]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%kept)",
    make("scores", f"10,{V},2000", "jit(f)/jvp()/dot_general", operands="%hidden"),
    make("gradient", "8,16", "jit(f)/transpose(jvp())/dot_general", operands="%scores, %hidden"),
    make("root", "2,2", "jit(f)/add", operands="%gradient, %fast"),
]


def parts(step, total):
    return temporary_parts(hlo.parse(program(step, FUSED)), total, {(8, 16)}, {V})


def test_the_parts_are_what_is_alive_at_the_peak_and_add_up_to_the_total():
    step = [line for line in STEP if not line.startswith("%copied")]
    alive = 4 * (10 * 10 + 10 * V * 2000 + 8 * 16)
    assert parts(step, alive) == {"activations": 400, "logits": 4 * 10 * V * 2000, "gradients": 512, "temporaries": 0}
    doubled = parts(step, 2 * alive)
    assert doubled["activations"] == 800 and sum(doubled.values()) == 2 * alive


def test_a_copy_counts_once_and_as_what_it_is_a_copy_of():
    step = [
        STEP[0], make("kept", "10,30", "jit(f)/jvp()/tanh", layout=FAST), STEP[5],
        "%there = f32[10,30]{1,0:T(8,128)} copy-done(%copied)", make("root", "2,2", "add", operands="%there"),
    ]  # fmt: skip
    assert parts(step, 1216)["activations"] == 1200


def test_a_program_without_temporaries_has_none():
    assert sum(parts([STEP[0], make("root", "2,2", "add", layout=FAST)], 0).values()) == 0


def test_a_shard_is_what_one_device_holds():
    mesh = make_mesh({"data": 2, "fsdp": 4})
    tree = {
        "divided": jax.ShapeDtypeStruct((8, 16), jnp.float32, sharding=sharding((8, 16), ("batch", None), mesh)),
        "whole": jax.ShapeDtypeStruct((3,), jnp.bfloat16, sharding=sharding((3,), (None,), mesh)),
    }
    assert shard_bytes(tree) == 16 * 4 + 3 * 2
