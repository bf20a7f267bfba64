"""What each piece of a training step costs on TPUs, as their compiler estimates it; no TPU is needed.

    python benchmarks/tpu_pieces.py [--topologies v5e-8 ...] [--models gpt1 ...] [--steps]

Compiles every piece (embedding, attention, MLP, output and loss, optimizer) alone, with its gradients, at one layer's
size and with the shardings that it has in the step: bfloat16 compute, fsdp over all chips. Writes
docs/benchmarks/tpu_pieces.json after each, and tpu_pieces.md from it; started again, it compiles what is missing.
`--steps` compiles the whole steps too, which takes minutes each.
"""

import argparse
import dataclasses
import datetime
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # a TPU that is here is left alone

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import optax  # noqa: E402
from jax.sharding import NamedSharding, PartitionSpec  # noqa: E402

from configs import pretrain as recipes  # noqa: E402
from gpt_jax.configuration import write_json  # noqa: E402
from gpt_jax.models import decoder, layers  # noqa: E402
from gpt_jax.models.attention import self_attention  # noqa: E402
from gpt_jax.models.config import ModelConfig  # noqa: E402
from gpt_jax.models.likelihood import weighted_nats  # noqa: E402
from gpt_jax.parallel.devices import compiler_options  # noqa: E402
from gpt_jax.parallel.rules import constrain, logical_axes, path_string, sharding  # noqa: E402
from gpt_jax.planning import cost, hlo  # noqa: E402
from gpt_jax.planning.topologies import Topology, find_topology  # noqa: E402
from gpt_jax.progress import say  # noqa: E402
from gpt_jax.runs import plan, pretrain  # noqa: E402

TOPOLOGIES = ("v5e-8", "v6e-8", "v5p-8")
SEQUENCES_A_CHIP = {"gpt1": 8, "gpt2-small": 8, "gpt2-xl": 4, "gpt3-1.3B": 2}
ATTENTION_BLOCK = 256  # of GPT-1's step on v5e-8 the fastest (LOG.md)
WHOLE_STEP = "whole step"
OUT = ROOT / "docs" / "benchmarks" / "tpu_pieces.json"


@dataclasses.dataclass(frozen=True)
class Piece:
    """A part of the step, ready to be compiled.

    Attributes:
      times: how often it runs in a step; flops: of its products, once, on all chips together.
      function, arguments, shardings: what is compiled, for which abstract arrays, and how its results lie.
      donated: arguments whose memory the results may take; beyond: the piece whose cost is taken off this one's.
    """

    name: str
    times: int
    flops: float
    function: Callable
    arguments: tuple
    shardings: Any
    donated: tuple[int, ...] = ()
    beyond: str = ""


def main() -> None:
    """Compiles what is missing and writes both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topologies", nargs="+", default=TOPOLOGIES)
    parser.add_argument("--models", nargs="+", default=list(SEQUENCES_A_CHIP))
    parser.add_argument("--steps", action="store_true", help="compile the whole steps too")
    parser.add_argument("--out", type=Path, default=OUT, help="the JSON file; the table stands beside it")
    args = parser.parse_args()
    jax.config.update("jax_threefry_partitionable", True)
    cells = json.loads(args.out.read_text())["cells"] if args.out.exists() else []
    known = {(cell["topology"], cell["model"], cell["piece"]): cell for cell in cells}
    for model in args.models:
        for name in args.topologies:
            topology = find_topology(name)
            step = plan.prepare(config_of(model, len(topology.devices)), topology)
            for piece in pieces(step):
                if (name, model, piece.name) not in known:
                    forward = known.get((name, model, piece.beyond))
                    note(args.out, known, name, model, measure(piece, step, topology, forward))
            if args.steps and (name, model, WHOLE_STEP) not in known:
                note(args.out, known, name, model, measure_step(step, topology))
    write(args.out, known)
    print(args.out.with_suffix(".md").read_text())


def config_of(model: str, chips: int):
    """The pretraining config whose step is taken to pieces."""
    config = recipes.get_config(model).unlock()
    config.model.update(compute_dtype="bfloat16", attention_block=ATTENTION_BLOCK)
    config.mesh.update(data=1, fsdp=chips)
    config.train.batch_size = SEQUENCES_A_CHIP[model] * chips
    return config.lock()


def pieces(step: plan.Step) -> Iterator[Piece]:
    """All pieces of a step, each forward piece before the backward one that it is taken off."""
    model, mesh, params = step.model, step.mesh, step.abstract.params
    batch, time_ = step.batch["tokens"].shape
    tokens, width = batch * time_, model.embed_dim
    x_BTD = jax.ShapeDtypeStruct(
        (batch, time_, width), model.dtype, sharding=sharding((batch, time_, width), ("batch", "time", None), mesh)
    )
    everywhere = NamedSharding(mesh, PartitionSpec())
    seed = jax.ShapeDtypeStruct((), jnp.uint32, sharding=everywhere)
    table = {"embedding": params["embedding"]}
    yield Piece(
        "embedding", 1, 0.0, with_gradient(embedding(model), 1),
        (table, step.batch["tokens"], seed, x_BTD), (x_BTD.sharding, (_shardings(table),)),
    )  # fmt: skip
    for window in dict.fromkeys(model.attention_windows):
        one = one_layer(params, "attention", mesh)
        name = "banded attention" if window else "attention"
        times = sum(
            model.attention_windows[i % len(model.attention_windows)] == window for i in range(model.num_layers)
        )
        keys = min(window or time_, time_)
        forward_flops = tokens * (2 * _weights(one) + 4 * model.num_heads * model.head_width * keys)
        function = sublayer(model, "attention", window)
        yield Piece(f"{name}, forward", times, forward_flops, function, (one, x_BTD, seed), x_BTD.sharding)
        yield Piece(
            f"{name}, backward", times, 2 * forward_flops, with_gradient(function, 2), (one, x_BTD, seed, x_BTD),
            (x_BTD.sharding, (_shardings(one), x_BTD.sharding)), beyond=f"{name}, forward",
        )  # fmt: skip
    one = one_layer(params, "mlp", mesh)
    yield Piece(
        "MLP", model.num_layers, 6 * tokens * _weights(one), with_gradient(sublayer(model, "mlp"), 2),
        (one, x_BTD, seed, x_BTD), (x_BTD.sharding, (_shardings(one), x_BTD.sharding)),
    )  # fmt: skip
    head = {name: params[name] for name in ("unembedding", "final_norm") if name in params}
    if model.tied_output:
        head["embedding"] = {"tokens": params["embedding"]["tokens"]}
    yield Piece(
        "output and loss", 1, 6 * tokens * model.vocab_size * width,
        jax.value_and_grad(loss(model), argnums=(0, 1)),
        (head, x_BTD, step.batch["targets"], step.batch["loss_mask"]),
        (everywhere, (_shardings(head), x_BTD.sharding)),
    )  # fmt: skip
    settings = pretrain.step_settings(step.config, model, step.config.train.steps or 10**6)
    yield Piece(
        "optimizer", 1, 0.0, update(settings["optimizer"]), (params, step.abstract.opt_state, params),
        (_shardings(params), _shardings(step.abstract.opt_state), everywhere), donated=(0, 1),
    )  # fmt: skip


def embedding(model: ModelConfig) -> Callable:
    """(parameters, tokens, seed) -> the first layer's input."""
    return lambda params, tokens_BT, seed: decoder.embed(params, model, tokens_BT, jax.random.key(seed))


def sublayer(model: ModelConfig, name: str, window: int = 0) -> Callable:
    """(one layer's parameters, x_BTD, seed) -> x_BTD: half of `decoder.block`, with its norm and residual sum."""

    def run(params: dict, x_BTD: jax.Array, seed: jax.Array) -> jax.Array:
        params = decoder.gather_kernels(params, model)
        key, dropout_key = jax.random.split(jax.random.key(seed))
        pre = model.norm_position == "pre"
        y_BTD = layers.norm(x_BTD, params[f"{name}_norm"], model) if pre else x_BTD
        if name == "attention":
            y_BTD = self_attention(y_BTD, params[name], model, key, window=window)
        else:
            y_BTD = layers.mlp(y_BTD, params[name], model)
        x_BTD = x_BTD + layers.dropout(y_BTD, model.dropout_rate("residual"), dropout_key)
        x_BTD = constrain(x_BTD, "batch", "time", None)
        return x_BTD if pre else layers.norm(x_BTD, params[f"{name}_norm"], model)

    return run


def loss(model: ModelConfig) -> Callable:
    """(parameters, last layer's output, targets, weights) -> summed nats."""

    def run(params: dict, x_BTD: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array) -> jax.Array:
        hidden_BTD = layers.norm(x_BTD, params["final_norm"], model) if model.final_norm else x_BTD
        return weighted_nats(params, model, hidden_BTD, targets_BT, weights_BT)

    return run


def update(optimizer: optax.GradientTransformation) -> Callable:
    """(parameters, optimizer's state, gradients) -> the next ones, and the gradients' norm."""

    def run(params: dict, opt_state, gradients: dict) -> tuple:
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, optax.tree.norm(gradients)

    return run


def with_gradient(function: Callable, differentiated: int) -> Callable:
    """`function` that takes its result's gradient as a last argument, and gives those of its first arguments too."""

    def both(*arguments):
        *arguments, gradient = arguments
        learning, others = arguments[:differentiated], arguments[differentiated:]
        result, pull_back = jax.vjp(lambda *learning: function(*learning, *others), *learning)
        return result, pull_back(gradient)

    return both


def one_layer(params: dict, name: str, mesh: jax.sharding.Mesh) -> dict:
    """The abstract parameters of one layer's `name` and of its norm, divided as the stack is."""

    def unstacked(path, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        where = sharding(leaf.shape[1:], logical_axes(f"layers/{path_string(path)}")[1:], mesh)
        return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype, sharding=where)

    part = {key: params["layers"][key] for key in (name, f"{name}_norm")}
    return jax.tree_util.tree_map_with_path(unstacked, part)


def _shardings(tree) -> Any:
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def _weights(one: dict) -> int:
    return sum(
        math.prod(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(one)
        if path_string(path).endswith("/kernel")
    )


def measure(piece: Piece, step: plan.Step, topology: Topology, forward: dict | None) -> dict[str, Any]:
    """The cell of one piece: cycles and bytes of one run of it."""
    jitted = jax.jit(
        piece.function, out_shardings=piece.shardings, donate_argnums=piece.donated,
        compiler_options=compiler_options(step.mesh),
    )  # fmt: skip
    with jax.set_mesh(step.mesh):
        compiled = jitted.lower(*piece.arguments).compile()
    found = cost.estimate(hlo.parse(compiled.as_text()), dict(step.mesh.shape), topology.chip)
    cell = {
        "piece": piece.name,
        "times": piece.times,
        "flops": piece.flops / len(topology.devices),
        "cycles": found.compute_cycles,
        "exposed_cycles": found.total_cycles - found.compute_cycles,
        "ring_bytes": sum(collective.ring_bytes for collective in found.collectives),
    }
    if forward is not None:
        cell |= {name: cell[name] - forward[name] for name in ("cycles", "exposed_cycles", "ring_bytes")}
    return cell | _conditions(step, topology)


def measure_step(step: plan.Step, topology: Topology) -> dict[str, Any]:
    """The cell of the whole step."""
    cell = {"piece": WHOLE_STEP, "times": 1}
    try:
        made, _ = plan.make_plan(step, topology)
    except plan.OutOfMemory:
        return cell | {"fits": False} | _conditions(step, topology)
    return cell | _conditions(step, topology) | {
        "fits": made["fits"],
        "flops": made["analytic_flops"] / made["chips"],
        "cycles": made["compute_cycles"],
        "exposed_cycles": made["total_cycles"] - made["compute_cycles"],
        "ring_bytes": sum(collective["ring_bytes"] for collective in made["collectives"]),
        "bytes_per_chip": made["bytes_per_chip"]["total"],
    }  # fmt: skip


def _conditions(step: plan.Step, topology: Topology) -> dict[str, Any]:
    return {
        "chips": len(topology.devices),
        "sequences_a_chip": step.config.train.batch_size // len(topology.devices),
        "sequence_length": step.config.data.sequence_length,
        "dropout": step.model.dropout,
        "attention_block": step.model.attention_block,
        "cycles_per_second": topology.chip.cycles_per_second,
        "flops_per_cycle": topology.chip.flops_per_cycle,
        "date": datetime.date.today().isoformat(),
        "jax": jax.__version__,
    }


def note(path: Path, known: dict[tuple, dict], topology: str, model: str, cell: dict[str, Any]) -> None:
    """Puts a new cell among the `known` ones, and all on the disk."""
    known[topology, model, cell["piece"]] = {"topology": topology, "model": model} | cell
    cost_of_it = f"{cell['cycles'] / 1e6:.3f} million cycles" if "cycles" in cell else "does not fit"
    say(f"{datetime.datetime.now():%H:%M:%S} {topology} {model} {cell['piece']}: {cost_of_it}")
    write(path, known)


def write(path: Path, known: dict[tuple, dict]) -> None:
    """Both files, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    command = "python benchmarks/tpu_pieces.py"
    write_json(path, {"command": command, "hardware": "compiler estimates, no TPU", "cells": list(known.values())})
    path.with_suffix(".md").write_text(markdown(list(known.values()), command))


def markdown(cells: list[dict[str, Any]], command: str) -> str:
    """The tables for people: the sums of all models and machines, then the pieces of each."""
    groups: dict[tuple[str, str], list[dict]] = {}
    for cell in cells:
        groups.setdefault((cell["model"], cell["topology"]), []).append(cell)
    dates = sorted({cell["date"] for cell in cells})
    lines = [
        "# What the pieces of a training step cost on TPUs",
        "",
        f"**Compiler estimates, no TPU**: nothing here ran on a chip. Made by `{command}` on "
        f"{' to '.join(dict.fromkeys((dates[0], dates[-1])))}, jax {', '.join(sorted({c['jax'] for c in cells}))}.",
        "",
        "Each piece is compiled alone for the whole slice, with its gradients, at one layer's size, bfloat16 compute, "
        "fsdp over all chips. Cycles are the TPU compiler's own estimates for a chip without collectives, which stand "
        "in a row of their own: their ring bytes over one axis of the interconnect, waited for in full where the piece "
        "itself has nothing to hide them under (a whole step hides some). Attention backward is both passes less the "
        "forward one. FLOPs and MFU count products only, attention in full (masked keys too; queries in blocks of "
        f"{ATTENTION_BLOCK} skip most of those, which shows as a gain). The sum leaves out what stands between the "
        "pieces, above all the stacking of the layers' gradients. A share is of that sum.",
        "",
        "| model | on | tokens a step | sum of the pieces | MFU | whole step | MFU |",
        "|---|---|---|---|---|---|---|",
    ]
    for (model, topology), found in groups.items():
        lines.append(_summary(model, topology, found))
    for (model, topology), found in groups.items():
        lines += ["", *_table(model, topology, found)]
    return "\n".join(lines) + "\n"


def _summary(model: str, topology: str, found: list[dict]) -> str:
    tokens = found[0]["chips"] * found[0]["sequences_a_chip"] * found[0]["sequence_length"]
    parts = [cell for cell in found if cell["piece"] != WHOLE_STEP]
    whole = [cell for cell in found if cell["piece"] == WHOLE_STEP]
    if not _complete(parts):
        summed = "not all compiled yet | "
    else:
        summed = f"{_milliseconds(parts):.1f} ms | {_mfu(parts):.1%}"
    if not whole:
        step = " | "
    elif "cycles" not in whole[0]:
        step = "does not fit | "
    else:
        step = f"{_milliseconds(whole):.1f} ms | {_mfu(whole):.1%}"
    return f"| {model} | {topology} | {tokens:,} | {summed} | {step} |"


def _table(model: str, topology: str, found: list[dict]) -> list[str]:
    first = found[0]
    parts = [cell for cell in found if cell["piece"] != WHOLE_STEP]
    total = _cycles(parts)
    to_ms = 1e3 / first["cycles_per_second"]

    def share(cycles: float) -> str:
        return f"{cycles / total:.1%}" if _complete(parts) else ""

    lines = [
        f"## {model} on {topology}",
        "",
        f"{first['chips']} chips, {first['sequences_a_chip']} × {first['sequence_length']} tokens a chip, dropout "
        f"{first['dropout']}",
        "",
        "| piece | a step | million cycles | ms | GFLOPs a chip | MFU | share |",
        "|---|---|---|---|---|---|---|",
    ]
    for cell in parts:
        mfu = f"{_mfu([cell | {'exposed_cycles': 0}]):.1%}" if cell["flops"] else ""
        flops = f"{cell['flops'] / 1e9:.1f}" if cell["flops"] else ""
        lines.append(
            f"| {cell['piece']} | {cell['times']} × | {cell['cycles'] / 1e6:.3f} | {cell['cycles'] * to_ms:.3f} | "
            f"{flops} | {mfu} | {share(cell['times'] * cell['cycles'])} |"
        )
    exposed = sum(cell["times"] * cell["exposed_cycles"] for cell in parts)
    sent = sum(cell["times"] * cell["ring_bytes"] for cell in parts)
    lines.append(
        f"| collectives ({sent / 2**20:,.0f} MiB sent by a chip) | | {exposed / 1e6:.3f} | {exposed * to_ms:.3f} | | | "
        f"{share(exposed)} |"
    )
    return lines


def _complete(parts: list[dict]) -> bool:
    """Whether no piece is missing; the optimizer is compiled last."""
    return any(cell["piece"] == "optimizer" for cell in parts)


def _cycles(cells: list[dict]) -> float:
    return sum(cell["times"] * (cell["cycles"] + cell["exposed_cycles"]) for cell in cells)


def _milliseconds(cells: list[dict]) -> float:
    return 1e3 * _cycles(cells) / cells[0]["cycles_per_second"]


def _mfu(cells: list[dict]) -> float:
    flops = sum(cell["times"] * cell["flops"] for cell in cells)
    return flops / max(_cycles(cells) * cells[0]["flops_per_cycle"], 1)


if __name__ == "__main__":
    main()
