"""`--plan=TOPOLOGY`: does a pretraining fit on that machine, and how fast will it be? The machine need not be there.

The very step that training runs is compiled for the topology. What the compiler says of it is printed and kept in
`plan.json`, its program in `optimized_hlo.txt`.
"""

import bisect
import dataclasses
import functools
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from gpt_jax import configuration
from gpt_jax.errors import UserError
from gpt_jax.models import decoder
from gpt_jax.models.config import ModelConfig
from gpt_jax.models.flops import training_flops_per_token
from gpt_jax.models.presets import model_config
from gpt_jax.parallel.devices import CHIPS, GIB
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.parallel.rules import sharding
from gpt_jax.planning import hlo, memory
from gpt_jax.planning.cost import Cost, estimate
from gpt_jax.planning.report import render
from gpt_jax.planning.topologies import Topology, find_topology
from gpt_jax.progress import say
from gpt_jax.runs import pretrain
from gpt_jax.runs.recipe import check_batch, check_model_fits, check_ramp
from gpt_jax.training.state import TrainState, abstract_state, state_builder
from gpt_jax.training.step import jit_train_step

DEAREST = 10
REMAT = ("none", "dots", "block")  # from the fastest to the one that keeps least
# What of a plan is known of TPUs alone, whose compiler says what its instructions cost.
ESTIMATES = (
    "estimated_step_seconds",
    "estimated_step_seconds_without_collectives",
    "estimated_mfu",
    "estimated_mfu_without_collectives",
    "estimated_tokens_per_second",
    "compute_cycles",
    "total_cycles",
    "pallas_cycles",
    "unknown_kernels",
    "collectives",
    "dearest",
)
# The compiler's two ways to say that a program does not fit: "Used 20.1G of 15.75G hbm", "... required for HLO
# temporaries (20.1G) exceeds available HBM (15.75G)".
_REFUSAL = re.compile(
    r"(?:Used |temporaries \()([\d.]+)([KMGT]?)\)?(?: of | exceeds available HBM \()([\d.]+)([KMGT]?)"
)


class OutOfMemory(Exception):
    """The compiler's verdict that a program does not fit.

    Attributes:
      needed, missing: bytes of a chip's memory, at least; None where the compiler does not say.
    """

    def __init__(self, needed: int | None, missing: int | None):
        super().__init__(needed, missing)
        self.needed, self.missing = needed, missing


@dataclasses.dataclass(frozen=True)
class Step:
    """A training step that is ready to be compiled for a mesh."""

    config: ConfigDict
    model: ModelConfig
    mesh: jax.sharding.Mesh
    abstract: TrainState
    batch: dict[str, jax.ShapeDtypeStruct]

    @property
    def tokens(self) -> int:
        """Tokens of a step, all chips together."""
        return self.config.train.batch_size * self.config.data.sequence_length


def run(config: ConfigDict, workdir: Path, topology_name: str) -> dict[str, Any]:
    """Plans the pretraining that `config` describes for `topology_name`; prints the report and returns the plan.

    Raises:
      UserError: for what cannot be planned, and where the program does not fit; `plan.json` is written all the same.
    """
    if config.run != "pretrain":
        raise UserError(f"--plan: of pretraining runs only (configs/pretrain.py), and this is run={config.run!r}.")
    jax.config.update("jax_threefry_partitionable", True)
    topology = find_topology(topology_name)
    step = prepare(config, topology)
    say(f"compiling {pretrain.title(step.config)} for {topology.name} ({len(topology.devices)} devices) ...")
    folder = plan_folder(workdir, topology)
    try:
        plan, text = make_plan(step, topology)
    except OutOfMemory as verdict:
        plan = refused_plan(step, topology, verdict)
        _write(folder, plan, text="")
        raise UserError(_does_not_fit(plan, nearest_that_fits(step, topology))) from None
    _write(folder, plan, text)
    print(render(plan))
    print(f"plan: {folder / 'plan.json'}; the compiled program: {folder / 'optimized_hlo.txt'}")
    return plan


def _write(folder: Path, plan: dict[str, Any], text: str) -> None:
    """`plan.json`, and the program beside it; an earlier plan's program does not stay beside a plan that has none."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "optimized_hlo.txt").unlink(missing_ok=True)
    configuration.write_json(folder / "plan.json", plan)
    if text:
        (folder / "optimized_hlo.txt").write_text(text)


def prepare(config: ConfigDict, topology: Topology) -> Step:
    """The step that training would run on `topology`, with nothing made yet.

    Raises:
      UserError: for a config that contradicts itself or the topology.
    """
    config, _ = pretrain.resolve(config)
    model = model_config(**config.model)
    mesh = make_mesh(config.mesh, topology.devices)
    check_model_fits(model, mesh)
    check_batch(config.train.batch_size, mesh, accumulation=config.train.accumulation)
    check_ramp(config, pretrain.batch_sizes(config), mesh)
    pretrain.check_sequence(config, mesh)
    settings = pretrain.step_settings(config, model, _steps(config))
    build = state_builder(functools.partial(decoder.init, model), settings["optimizer"], config.seed)
    shape = (config.train.batch_size, config.data.sequence_length)
    rows = sharding(shape, ("batch", "time"), mesh)
    dtypes = {"tokens": jnp.int32, "targets": jnp.int32, "loss_mask": jnp.float32}
    batch = {name: jax.ShapeDtypeStruct(shape, dtype, sharding=rows) for name, dtype in dtypes.items()}
    return Step(config, model, mesh, abstract_state(build, mesh), batch)


def compile_step(step: Step) -> tuple[jax.stages.Compiled, float]:
    """The compiled step, and the seconds that took.

    Raises:
      OutOfMemory: it does not fit, as the compiler says or as its sum of the memory shows.
    """
    began = time.monotonic()
    with jax.set_mesh(step.mesh):
        lowered = lower_step(step)
        try:
            compiled = lowered.compile()
        except Exception as error:
            if "RESOURCE_EXHAUSTED" not in str(error) and "Ran out of memory" not in str(error):
                raise
            raise out_of_memory(str(error)) from None
    chip, total = CHIPS.get(step.mesh.devices.flat[0].device_kind), memory.total_bytes(compiled.memory_analysis())
    if chip and chip.hbm_bytes and total > chip.hbm_bytes:  # by a little, the compiler lets it pass
        raise OutOfMemory(total, total - chip.hbm_bytes)
    return compiled, time.monotonic() - began


def lower_step(step: Step) -> jax.stages.Lowered:
    """The step as it goes to the compiler: the very one that training runs."""
    settings = pretrain.step_settings(step.config, step.model, _steps(step.config))
    seed = jax.ShapeDtypeStruct((), jnp.uint32)
    with jax.set_mesh(step.mesh):
        return jit_train_step(step.abstract, step.mesh, **settings).lower(step.abstract, step.batch, seed)


def _steps(config: ConfigDict) -> int:
    """Updates of the run; many where it counts epochs of a text, which planning does not read."""
    return pretrain.planned_steps(config) or 10**6


def out_of_memory(message: str) -> OutOfMemory:
    """The compiler's refusal as numbers."""
    found = _REFUSAL.search(message)
    if found is None:
        return OutOfMemory(None, None)
    needed, available = _bytes(found[1], found[2]), _bytes(found[3], found[4])
    return OutOfMemory(needed, needed - available)


def check_state_fits(step: Step, topology: Topology) -> None:
    """Raises OutOfMemory where parameters and optimizer alone do not fit: there is nothing to compile."""
    state, hbm = memory.shard_bytes(step.abstract), topology.chip.hbm_bytes if topology.chip else 0
    if hbm and state > hbm:
        raise OutOfMemory(state, state - hbm)


def make_plan(step: Step, topology: Topology) -> tuple[dict[str, Any], str]:
    """(what `plan.json` says, the compiled program's text).

    Raises:
      OutOfMemory: the program does not fit.
    """
    check_state_fits(step, topology)
    compiled, seconds = compile_step(step)
    text = compiled.as_text()
    module, said = hlo.parse(text), compiled.memory_analysis()
    parts = _lasting_parts(step)
    parts |= memory.temporary_parts(module, said.temp_size_in_bytes, *_shapes(step))
    parts["program"] = said.generated_code_size_in_bytes
    total = memory.total_bytes(said)
    parts["padding"] = total - sum(parts.values())  # of tiled arrays; and a few scalars
    parts["total"] = total
    plan = facts(step, topology) | {
        "fits": True,
        "bytes_per_chip": parts,
        "compile_seconds": round(seconds, 1),
    }
    if topology.platform == "tpu":
        cost = estimate(module, dict(step.mesh.shape), topology.chip)
        plan |= _speed(step, topology, cost)
    return plan, text


def refused_plan(step: Step, topology: Topology, verdict: OutOfMemory) -> dict[str, Any]:
    """What `plan.json` says of a step that does not fit; of its memory only what stays from step to step."""
    return facts(step, topology) | {
        "fits": False,
        "bytes_per_chip": _lasting_parts(step) | {"total": verdict.needed},
        "missing_bytes": verdict.missing,
    }


def _lasting_parts(step: Step) -> dict[str, int]:
    return {
        "parameters": memory.shard_bytes(step.abstract.params),
        "optimizer": memory.shard_bytes(step.abstract.opt_state),
        "batch": memory.shard_bytes(step.batch),
    }


def facts(step: Step, topology: Topology) -> dict[str, Any]:
    """What is known before anything is compiled; None for the estimates."""
    flops = training_flops_per_token(step.model, step.config.data.sequence_length) * step.tokens
    return {
        "topology": topology.name,
        "layout": topology.layout,
        "chips": len(topology.devices),
        "device_kind": topology.devices[0].device_kind,
        "hbm_bytes": topology.chip.hbm_bytes if topology.chip else None,
        "model": pretrain.title(step.config),
        "parameters": decoder.parameter_count(step.model),
        "mesh": dict(step.mesh.shape),
        "sequences": step.config.train.batch_size,
        "sequence_length": step.config.data.sequence_length,
        "accumulation": step.config.train.accumulation,
        "dropout": {place: step.model.dropout_rate(place) for place in ("embedding", "attention", "residual")},
        "remat": step.model.remat,
        "scan_layers": step.model.scan_layers,
        "compute_dtype": step.model.compute_dtype,
        "analytic_flops": flops,
        "state_bytes": memory.shard_bytes(step.abstract),
    } | dict.fromkeys(ESTIMATES)


def _speed(step: Step, topology: Topology, cost: Cost) -> dict[str, Any]:
    chip = topology.chip
    flops = training_flops_per_token(step.model, step.config.data.sequence_length) * step.tokens / len(topology.devices)
    ideal = flops / chip.flops_per_cycle
    return {
        "estimated_step_seconds": cost.total_cycles / chip.cycles_per_second,
        "estimated_step_seconds_without_collectives": cost.compute_cycles / chip.cycles_per_second,
        "estimated_mfu": ideal / cost.total_cycles,
        "estimated_mfu_without_collectives": ideal / cost.compute_cycles,
        "estimated_tokens_per_second": step.tokens * chip.cycles_per_second / cost.total_cycles,
        "compute_cycles": cost.compute_cycles,
        "total_cycles": cost.total_cycles,
        "pallas_cycles": cost.pallas_cycles,
        "unknown_kernels": cost.unknown_kernels,
        "ring_bytes_per_second": chip.ring_bytes_per_second,
        "flops_per_cycle": chip.flops_per_cycle,
        "collectives": [dataclasses.asdict(collective) for collective in cost.collectives],
        "dearest": [dataclasses.asdict(item) for item in cost.items[:DEAREST]],
    }


def _shapes(step: Step) -> tuple[set[tuple[int, ...]], set[int]]:
    """Shapes of the parameters, one layer at a time, whole and divided; and sizes of the vocabulary's dimension."""
    shapes = set()
    for leaf in jax.tree.leaves(step.abstract.params):
        for shape in (leaf.shape, leaf.sharding.shard_shape(leaf.shape)):
            shapes |= {shape, shape[1:]}
    vocabulary = step.model.vocab_size
    tensor = step.mesh.shape["tensor"]
    return {tuple(size for size in shape if size != 1) for shape in shapes}, {vocabulary, -(-vocabulary // tensor)}


def nearest_that_fits(step: Step, topology: Topology) -> dict[str, Any] | None:
    """The first of `changes` that fits, each of which takes less than the one before; None if none does."""

    def fits(change: dict[str, Any]) -> bool:
        say("trying " + flags(change))
        try:
            candidate = prepare(changed(step.config, change), topology)
            check_state_fits(candidate, topology)
            compile_step(candidate)
        except (OutOfMemory, UserError):
            return False
        return True

    ladder = list(changes(step))
    first = bisect.bisect_left(ladder, True, key=fits)
    return ladder[first] if first < len(ladder) else None


def changes(step: Step) -> Iterator[dict[str, Any]]:
    """What takes less memory than the step's config, as values by dotted names; the least loss of speed first.

    The state divided over all chips; less kept for the backward pass; no whole logits; the batch in parts.
    """
    config, shape, slices = step.config, step.mesh.shape, step.config.mesh.slices
    rows = shape["data"] * shape["fsdp"]
    divided = {"mesh.data": slices, "mesh.fsdp": rows // slices}
    if step.model.embed_dim % divided["mesh.fsdp"]:
        divided = {}
    chunk = min(config.model.logits_chunk or 256, config.data.sequence_length // 2)
    least = {"model.remat": "block", "model.logits_chunk": chunk}
    factors = (2**power for power in range(1, 8))
    parts = [
        n
        for n in (factor * config.train.accumulation for factor in factors)
        if not config.train.batch_size % (n * rows)
    ]
    ladder = [{}, {"model.remat": "dots"}, least, *(least | {"train.accumulation": n} for n in parts)]
    flat, tried = configuration.flatten(config.to_dict()), [{}]
    for rung in ladder:
        if REMAT.index(rung.get("model.remat", "block")) < REMAT.index(step.model.remat):
            continue
        change = {name: value for name, value in (divided | rung).items() if flat[name] != value}
        if change not in tried:
            tried.append(change)
            yield change


def changed(config: ConfigDict, change: dict[str, Any]) -> ConfigDict:
    """A copy of `config` with other values, by their dotted names."""
    copy = config.copy_and_resolve_references()
    copy.update_from_flattened_dict(change)
    return copy


def flags(change: dict[str, Any]) -> str:
    """The same as one types it."""
    return " ".join(f"--config.{name}={value}" for name, value in change.items())


def plan_folder(workdir: Path, topology: Topology) -> Path:
    """Where what is found out about `topology` is kept."""
    return workdir / f"plan-{re.sub(r'[^A-Za-z0-9.]+', '-', topology.name)}"


def _does_not_fit(plan: dict[str, Any], change: dict[str, Any] | None) -> str:
    missing = plan["missing_bytes"]
    short = (
        f"at least {missing / GIB:.2f} GiB a chip are missing" if missing else "the compiler does not say by how much"
    )
    state = f"parameters and optimizer alone take {plan['state_bytes'] / GIB:.2f} GiB a chip"
    advice = f"The nearest change that fits: {flags(change)}" if change else "Nothing tried fits: take more chips."
    return f"--plan={plan['topology']}: {plan['model']} does not fit: {short} ({state}). {advice}"


def _bytes(number: str, unit: str) -> int:
    return int(float(number) * 1024 ** " KMGT".index(unit or " "))
