"""What a compiled TPU program costs: the compiler's own cycles, and what its collectives and kernels add to them.

The optimized HLO of a TPU carries an estimate of cycles at each costly instruction, but none at collectives and Pallas
calls. So:

- cycles of a computation: the sum over its instructions in the order of the schedule; a loop's body times its trips;
  of the branches of a condition the longest;
- a Pallas call: the longer of its FLOPs at half the chip's peak and its bytes at 78% of the memory's bandwidth, as its
  `cost_estimate` says; without one, the bytes of what it reads and writes, and FLOPs if it is splash attention, by
  formula (splash.py); `Cost.unknown_kernels` counts the others;
- a collective: its ring bytes over the bandwidth of one interconnect axis. The wires are one resource on which the
  transfers queue; one that was started asynchronously is charged only where the schedule waits for it and it is not
  there yet.

An estimate for comparing programs: it knows nothing of the host, of stalls, of copies between the chip's memories, of
gathers and scatters (the compiler gives them no cycles), of wires shared by several axes, or of the network between
slices, which is slower than the wires.
"""

import dataclasses
import math
import re

import numpy as np

from gpt_jax.parallel.devices import Chip
from gpt_jax.planning.hlo import Instruction, Module, array_bytes, arrays
from gpt_jax.planning.splash import splash_flops

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
PALLAS_SHARE_OF_PEAK = 0.5
_IOTA = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"  # devices in order, see _iota
SHARE_OF_HBM_BANDWIDTH = 0.78  # measured on the compiler's own estimate of an elementwise program on v5e


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation, as often as it runs in a step.

    Attributes:
      kind: `all-gather`, ...; axes: the mesh axes it runs over, joined by "+"; count: times a step.
      ring_bytes: bytes that each chip sends, all runs together; exposed_cycles: what the step waits for it.
    """

    kind: str
    axes: str
    count: int
    ring_bytes: float
    exposed_cycles: float


@dataclasses.dataclass(frozen=True)
class Item:
    """One instruction with what it costs in a step."""

    cycles: float
    count: int
    opcode: str
    shape: str
    operation: str
    source: str


@dataclasses.dataclass(frozen=True)
class Cost:
    """The estimate of one step on one chip.

    Attributes:
      compute_cycles: without collectives; total_cycles: with what of them is not hidden.
      pallas_cycles: the part of compute_cycles that was charged for Pallas calls by formula.
      unknown_kernels: Pallas calls of a step that do not say how many FLOPs they do: compute_cycles lacks them.
      items: instructions, dearest first; collectives: by kind and axes, dearest first.
    """

    compute_cycles: float
    total_cycles: float
    pallas_cycles: float
    unknown_kernels: int
    items: tuple[Item, ...]
    collectives: tuple[Collective, ...]


@dataclasses.dataclass
class _Walk:
    """What one run of a computation takes, in cycles since it began; `now` is where the schedule has got to."""

    compute: float = 0.0
    now: float = 0.0
    wires_free: float = 0.0
    pallas: float = 0.0
    unknown_kernels: int = 0
    items: dict[tuple[str, ...], tuple] = dataclasses.field(default_factory=dict)  # (cycles, count)
    sent: dict[tuple[str, str], tuple] = dataclasses.field(default_factory=dict)  # (count, ring bytes, cycles waited)

    @property
    def end(self) -> float:
        """When the last instruction is done and the last byte is there."""
        return max(self.now, self.wires_free)

    def work(self, cycles: float, key: tuple[str, ...]) -> None:
        """Something that keeps the chip busy."""
        self.compute += cycles
        self.now += cycles
        _add(self.items, key, cycles, 1)

    def wait(self, until: float, key: tuple[str, str]) -> None:
        """Nothing to do before a transfer is there."""
        waited = max(until - self.now, 0.0)
        self.now += waited
        _add(self.sent, key, 0, 0, waited)

    def send(self, cycles: float, ring_bytes: float, key: tuple[str, str]) -> float:
        """A transfer behind those that are on the wires; returns when it is there."""
        self.wires_free = max(self.now, self.wires_free) + cycles
        _add(self.sent, key, 1, ring_bytes, 0)
        return self.wires_free

    def include(self, inner: "_Walk", times: int = 1) -> None:
        """Another computation, run to its end `times` times."""
        self.compute += times * inner.compute
        self.now += times * inner.end
        self.pallas += times * inner.pallas
        self.unknown_kernels += times * inner.unknown_kernels
        for mine, theirs in ((self.items, inner.items), (self.sent, inner.sent)):
            for key, values in theirs.items():
                _add(mine, key, *(times * value for value in values))


def _add(sums: dict, key: tuple, *values: float) -> None:
    sums[key] = tuple(map(sum, zip(sums[key], values, strict=True))) if key in sums else values


def estimate(module: Module, mesh_shape: dict[str, int], chip: Chip) -> Cost:
    """The cost of one run of `module`.

    Args:
      mesh_shape: devices along each axis, in the order in which the program's partitions count them.
    """
    walk = _Estimate(module, mesh_shape, chip).walk(module.entry.name)
    items = [Item(cycles, count, *key) for key, (cycles, count) in walk.items.items()]
    collectives = [Collective(*key, count, sent, waited) for key, (count, sent, waited) in walk.sent.items()]
    return Cost(
        compute_cycles=walk.compute,
        total_cycles=walk.end,
        pallas_cycles=walk.pallas,
        unknown_kernels=walk.unknown_kernels,
        items=tuple(sorted(items, key=lambda item: -item.cycles)),
        collectives=tuple(sorted(collectives, key=lambda collective: -collective.ring_bytes)),
    )


class _Estimate:
    """Walks through the computations of a module."""

    def __init__(self, module: Module, mesh_shape: dict[str, int], chip: Chip):
        self.module, self.chip = module, chip
        self.axes, self.shape = tuple(mesh_shape), tuple(mesh_shape.values())

    def walk(self, name: str) -> _Walk:
        """Runs through a computation once, and through what it calls as often as it does."""
        walk, arrivals = _Walk(), {}  # arrivals: of what was started and not yet waited for
        for instruction in self.module.computations[name].instructions:
            if instruction.opcode == "while":
                walk.include(self.walk(instruction.called["body"][0]), self.module.trips(instruction))
            elif instruction.opcode in ("call", "conditional"):
                branches = [self.walk(branch) for called in instruction.called.values() for branch in called]
                walk.include(max(branches, key=lambda branch: branch.end))
            elif (transfer := self._transfer(instruction)) is not None:
                self._communicate(walk, arrivals, instruction, *transfer)
            else:
                self._compute(walk, instruction)
        return walk

    def _compute(self, walk: _Walk, instruction: Instruction) -> None:
        cycles = instruction.estimated_cycles
        if instruction.opcode == "custom-call" and 'custom_call_target="tpu_custom_call"' in instruction.attributes:
            flops = self._kernel_flops(instruction)
            cycles = self._kernel_cycles(instruction, flops or 0.0)
            walk.pallas += cycles
            walk.unknown_kernels += flops is None
        if cycles:
            source = self.module.source(instruction)
            walk.work(cycles, (instruction.opcode, instruction.shape, instruction.op_name, source))

    def _kernel_flops(self, instruction: Instruction) -> float | None:
        said = instruction.attribute(r'"cost_estimate":\{[^}]*"flops":"?(\d+)')
        return splash_flops(instruction.name, self._read(instruction)) if said is None else float(said)

    def _kernel_cycles(self, instruction: Instruction, flops: float) -> float:
        moved = float(instruction.attribute(r'"cost_estimate":\{[^}]*"bytes_accessed":"?(\d+)') or 0)
        if not moved:
            moved = sum(map(_shape_bytes, (*self._read(instruction), instruction.shape)))
        return max(
            flops / (PALLAS_SHARE_OF_PEAK * self.chip.flops_per_cycle),
            moved / (SHARE_OF_HBM_BANDWIDTH * self.chip.hbm_bytes_per_second / self.chip.cycles_per_second),
        )

    def _read(self, instruction: Instruction) -> list[str]:
        """The shapes of the operands."""
        return [self.module.by_name[name].shape for name in instruction.operand_names]

    def _transfer(self, instruction: Instruction) -> tuple[str, Instruction] | None:
        """(`whole`, `start` or `done`, the collective) where the instruction is one, or a wrapper around one."""
        kind, _, phase = instruction.opcode.rpartition("-")
        if instruction.opcode in COLLECTIVES:
            return "whole", instruction
        if kind in COLLECTIVES:
            return phase, instruction if phase == "start" else self.module.by_name[instruction.operand_names[0]]
        if kind == "async":  # the wrapper stands at the start; the other end names the start
            wrapper = instruction if phase == "start" else self.module.by_name[instruction.operand_names[0]]
            collective = self._inside(wrapper)
            return (phase, collective) if collective is not None and phase in ("start", "done") else None
        collective = self._inside(instruction)
        if collective is None or "async_collective_fusion" in instruction.called["calls"][0]:
            return None  # the last: compute under which a collective that was started before goes on
        if self._inside(instruction, "AsyncCollectiveStart"):
            return "start", collective
        return "done" if self._inside(instruction, "AsyncCollectiveDone") else "whole", collective

    def _inside(self, wrapper: Instruction, target: str | None = None) -> Instruction | None:
        """The collective, or the custom call of `target`, in the computation that a fusion or an async start calls."""
        inner = (i for name in wrapper.called.get("calls", ()) for i in self.module.computations[name].instructions)
        if target is None:
            return next((i for i in inner if i.opcode in COLLECTIVES), None)
        return next((i for i in inner if f'custom_call_target="{target}"' in i.attributes), None)

    def _communicate(
        self, walk: _Walk, arrivals: dict, instruction: Instruction, phase: str, collective: Instruction
    ) -> None:
        channel = collective.attribute(r"channel_id=(\d+)") or collective.name  # both ends carry it
        if phase == "done":
            if channel in arrivals:
                walk.wait(*arrivals.pop(channel))
            return
        kind, axes, sent = self._ring(collective, instruction)
        cycles = sent / self.chip.ring_bytes_per_second * self.chip.cycles_per_second
        there = walk.send(cycles, sent, (kind, axes))
        if phase == "start":
            arrivals[channel] = there, (kind, axes)
        else:
            walk.wait(there, (kind, axes))

    def _ring(self, collective: Instruction, around: Instruction) -> tuple[str, str, float]:
        """(kind, mesh axes, bytes that pass through each chip's wires) of a collective, run around a ring.

        Of n chips: an all-gather and a reduce-scatter (n-1)/n of the whole, an all-reduce both; an all-to-all n/4 of
        what a chip holds, since its pieces travel n/4 chips far, both ways at once ("How to scale your model", part 3).
        """
        kind = collective.opcode.removesuffix("-start")
        result = collective.shape
        if collective.opcode in ("all-gather-start", "collective-permute-start"):
            result = collective.elements[1]  # behind the operand
        whole = _shape_bytes(result)
        if kind == "collective-permute":
            pairs = re.findall(r"\{(\d+),(\d+)\}", collective.attribute(r"source_target_pairs=(\{\{.*?\}\})") or "")
            return kind, self._axes_of([list(map(int, pair)) for pair in pairs]), float(whole)
        groups = self._groups(collective)
        size = len(groups[0])
        share = (size - 1) / size
        if kind == "all-reduce" and around is not collective and "scatter" in around.called.get("calls", ("",))[0]:
            kind, factor = "reduce-scatter", share  # the compiler's fusion of an all-reduce with a slice of its result
        elif kind == "reduce-scatter":
            factor = share * size  # its result is one part of what is summed
        elif kind == "all-to-all":
            factor = size / 4 if size > 1 else 0.0
        else:
            factor = 2 * share if kind == "all-reduce" else share
        return kind, self._axes_of(groups), whole * factor

    def _axes_of(self, groups: list[list[int]]) -> str:
        """The mesh axes along which the members of a group differ."""
        varying = set()
        for group in groups:
            places = np.array(np.unravel_index(np.array(group), self.shape))
            varying |= set(np.flatnonzero((places != places[:, :1]).any(axis=1)))
        return "+".join(self.axes[axis] for axis in sorted(varying)) or "none"

    def _groups(self, collective: Instruction) -> list[list[int]]:
        """Partition ids of each group, from any of the ways in which HLO writes them."""
        text = collective.attributes
        if listed := re.search(r"replica_groups=\{(\{.*?\})\}", text):
            return [list(map(int, group.split(","))) for group in re.findall(r"\{([\d,]+)\}", listed[1])]
        if iota := re.search(rf"replica_groups=\[([\d,]+)\]<={_IOTA}", text):
            return _iota(*iota.groups()[1:]).reshape(_numbers(iota[1])).tolist()
        if mesh := re.search(rf"replica_groups=mesh\[(.*?)\](?:, device_ids=\({_IOTA}\))? ?(?:\{{([^}}]*)\}})?", text):
            sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
            named = re.findall(r"'([^']+)'", mesh[4] or "")
            ids = _iota(mesh[2], mesh[3]) if mesh[2] else np.arange(math.prod(sizes.values()))
            ids = ids.reshape(tuple(sizes.values()))
            inside = [list(sizes).index(name) for name in named]
            outside = [axis for axis in range(ids.ndim) if axis not in inside]
            return ids.transpose(outside + inside).reshape(-1, math.prod(ids.shape[axis] for axis in inside)).tolist()
        return [list(range(math.prod(self.shape)))]  # none are named: all are one group


def _iota(shape: str, order: str | None) -> np.ndarray:
    """0, 1, 2, ... in an array of `shape` whose axes are then put in `order`, both as HLO writes them: "2,8", "1,0"."""
    ids = np.arange(math.prod(_numbers(shape))).reshape(_numbers(shape))
    return ids if order is None else ids.transpose(_numbers(order))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def _shape_bytes(shape: str) -> int:
    return sum(array_bytes(*array) for array in arrays(shape))
