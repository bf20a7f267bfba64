"""Where every parameter of some presets lives, and which collectives their train step has: as text, to be reviewed.

    python -m tests.parallel.sharding_dump          # writes tests/golden/sharding/*.txt anew; some minutes
    python -m tests.parallel.sharding_dump gpt1     # that of one preset
    python -m tests.parallel.sharding_dump --print gpt1

A change of the sharding table, or of the model, shows as changed lines there. The step is compiled with all widths of
the preset but `LAYERS` layers, for simulated CPU devices. XLA for CPUs makes no reduce-scatters: an all-reduce of which
each device keeps its part stands in their place. An instruction in a loop counts once.
"""

import argparse
import collections
import dataclasses
import functools
import math
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from gpt_jax.models import decoder
from gpt_jax.models.parameters import ParameterSpec
from gpt_jax.models.presets import model_config
from gpt_jax.parallel.mesh import AXES, make_mesh
from gpt_jax.parallel.rules import path_string, sharding, tree_shardings
from gpt_jax.training.losses import language_model_loss
from gpt_jax.training.optimizers import make_optimizer
from gpt_jax.training.state import abstract_state, state_builder
from gpt_jax.training.step import train_step

FOLDER = Path(__file__).resolve().parents[1] / "golden" / "sharding"
LAYERS, BATCH, LONGEST = 2, 16, 1024
MESHES = {
    "books": [dict(data=8), dict(fsdp=2, tensor=2, sequence=2), dict(data=4, fsdp=2, tensor=2)],
    "laptop-lstm": [dict(data=8), dict(data=2, fsdp=4), dict(data=2, fsdp=8)],
    "gpt1": [dict(fsdp=8), dict(data=2, tensor=4), dict(fsdp=4, tensor=4)],
    "gpt2-small": [dict(fsdp=8), dict(fsdp=4, tensor=2), dict(fsdp=4, tensor=2, sequence=2)],
    "gpt2-xl": [dict(fsdp=8), dict(fsdp=16)],
    "gpt3-1.3B": [dict(fsdp=8), dict(fsdp=4, tensor=4)],
    "llama3.2-1B": [dict(fsdp=4, tensor=2), dict(fsdp=4, tensor=4), dict(tensor=16)],
    "qwen2.5-0.5B": [dict(fsdp=4, tensor=2), dict(fsdp=8, tensor=2)],
}
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
ITEM_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8}


def sections(preset: str) -> dict[str, tuple[str, dict[str, int]]]:
    """Heading -> what it is a section of (`parameters` or `step`), and the mesh."""
    parts = {}
    for sizes in MESHES[preset]:
        where = f"on {', '.join(f'{axis}={size}' for axis, size in sizes.items())} ({_devices(sizes)} devices)"
        parts[f"parameters {where}"] = ("parameters", sizes)
        parts[f"train step of {LAYERS} layers {where}, jax {jax.__version__}"] = ("step", sizes)
    return parts


def parameters(preset: str, sizes: dict[str, int]) -> str:
    """A line for each parameter: path, shape, the mesh axes of each dimension, float32 bytes a device."""
    mesh = jax.sharding.AbstractMesh(tuple(sizes.get(axis, 1) for axis in AXES), AXES)
    shapes = jax.tree.map(
        lambda spec: jax.ShapeDtypeStruct(spec.shape, jnp.float32),
        decoder.parameter_specs(model_config(preset)),
        is_leaf=lambda leaf: isinstance(leaf, ParameterSpec),
    )
    lines, total = [], 0
    for (path, leaf), place in zip(
        jax.tree_util.tree_leaves_with_path(shapes), jax.tree.leaves(tree_shardings(shapes, mesh)), strict=True
    ):
        held = 4 * math.prod(place.shard_shape(leaf.shape))
        axes = [names if isinstance(names, str) else "+".join(names or ["-"]) for names in place.spec]
        shape = " ".join(map(str, leaf.shape))
        lines.append(f"{path_string(path):32} {shape:>18}  {', '.join(axes):26} {held:>13,}")
        total += held
    return "\n".join([*lines, f"{'all':32} {'':18}  {'':26} {total:>13,}"])


def step(preset: str, sizes: dict[str, int]) -> str:
    """Number and megabytes (of the results, a device) of each kind of collective in the compiled train step."""
    published = model_config(preset)
    time = min(published.context_length, LONGEST)
    config = dataclasses.replace(
        published, num_layers=min(LAYERS, published.num_layers), context_length=time, dropout=0.0
    )
    mesh = make_mesh(sizes, jax.devices()[: _devices(sizes)])
    schedule = lambda count: 1e-3  # noqa: E731
    optimizer = make_optimizer("adamw", schedule, weight_decay=0.1, clip_norm=1.0)
    state = abstract_state(state_builder(functools.partial(decoder.init, config), optimizer, 0), mesh)
    rows = sharding((BATCH, time), ("batch", "time"), mesh)
    dtypes = {"tokens": jnp.int32, "targets": jnp.int32, "loss_mask": jnp.float32}
    batch = {name: jax.ShapeDtypeStruct((BATCH, time), dtype, sharding=rows) for name, dtype in dtypes.items()}
    jitted = jax.jit(
        functools.partial(
            train_step,
            loss_fn=lambda params, batch, key: language_model_loss(params, config, batch, key),
            optimizer=optimizer,
            schedule=schedule,
            accumulation=1,
        ),
        donate_argnums=0,
        out_shardings=(jax.tree.map(lambda x: x.sharding, state), NamedSharding(mesh, PartitionSpec())),
    )
    with jax.set_mesh(mesh):
        text = jitted.lower(state, batch, jax.ShapeDtypeStruct((), jnp.uint32)).compile().as_text()
    counts, size = collectives(text)
    lines = [f"{BATCH} x {time} tokens, float32, no dropout"]
    lines += [f"{kind:20} {counts[kind]:4} {size[kind] / 1e6:10.2f} MB" for kind in KINDS if counts[kind]]
    return "\n".join(lines)


def collectives(hlo: str) -> tuple[collections.Counter, collections.Counter]:
    """How many collectives of each kind stand in the text of a compiled program, and the bytes of their results."""
    counts, size = collections.Counter(), collections.Counter()
    for results, kind in re.findall(rf" = (.*?) ({'|'.join(KINDS)})(?:-start)?\(", hlo):
        counts[kind] += 1
        for item, shape in re.findall(r"(\w+)\[([\d,]*)\]", results):
            size[kind] += ITEM_BYTES[item] * math.prod(int(n) for n in shape.split(",") if n)
    return counts, size


def text(preset: str) -> str:
    """The whole file of a preset."""
    parts = [f"# {preset}: {decoder.parameter_count(model_config(preset)):,} parameters"]
    makers = {"parameters": parameters, "step": step}
    for heading, (kind, sizes) in sections(preset).items():
        parts.append(f"## {heading}\n{makers[kind](preset, sizes)}")
    return "\n\n".join(parts) + "\n"


def read(preset: str) -> dict[str, str]:
    """The sections of a preset's file, by heading."""
    parts = (FOLDER / f"{preset}.txt").read_text().split("\n\n## ")[1:]
    return dict(part.rstrip("\n").split("\n", 1) for part in parts)


def _devices(sizes: dict[str, int]) -> int:
    return math.prod(sizes.values())


def main() -> None:
    """Writes the files, or prints them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", metavar="PRESET", help=f"of {', '.join(MESHES)}; all by default")
    parser.add_argument("--print", action="store_true", help="to the standard output instead")
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", max(_devices(sizes) for meshes in MESHES.values() for sizes in meshes))
    for preset in arguments.presets or MESHES:
        if arguments.print:
            sys.stdout.write(text(preset))
        else:
            (FOLDER / f"{preset}.txt").write_text(text(preset))


if __name__ == "__main__":
    main()
