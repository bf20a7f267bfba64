"""What a compiled TPU program costs: the compiler's own cycles, and what its collectives and kernels add to them.

The optimized HLO of a TPU carries an estimate of cycles at each costly instruction, but none at collectives and Pallas
calls. So:

- cycles of a computation: the sum over its instructions in the order of the schedule; a loop's body times its trips;
- a Pallas call: the longer of its FLOPs at half the chip's peak and its bytes at 78% of the memory's bandwidth;
- a collective: its ring bytes over the bandwidth of one interconnect axis. The wires are one resource on which the
  transfers queue; one that was started asynchronously is charged only where the schedule waits for it and it is not
  there yet.

An estimate for comparing programs: it knows nothing of the host, of stalls, or of wires shared by several axes.
"""

import dataclasses
import math
import re
from collections import defaultdict

import numpy as np

from gpt_jax.parallel.devices import Chip
from gpt_jax.planning.hlo import Instruction, Module, array_bytes, element_bytes

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
PALLAS_SHARE_OF_PEAK = 0.5
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
      items: instructions, dearest first; collectives: by kind and axes, dearest first.
    """

    compute_cycles: float
    total_cycles: float
    pallas_cycles: float
    items: tuple[Item, ...]
    collectives: tuple[Collective, ...]


@dataclasses.dataclass
class _Clock:
    """The state of the walk through one computation, in cycles since it began."""

    compute: float = 0.0
    now: float = 0.0
    wires_free: float = 0.0

    def work(self, cycles: float, total: float | None = None) -> None:
        self.compute += cycles
        self.now += cycles if total is None else total


def estimate(module: Module, mesh_shape: dict[str, int], chip: Chip) -> Cost:
    """The cost of one run of `module`.

    Args:
      mesh_shape: devices along each axis, in the order in which the program's partitions count them.
    """
    return _Estimate(module, mesh_shape, chip).cost()


class _Estimate:
    def __init__(self, module: Module, mesh_shape: dict[str, int], chip: Chip):
        self.module, self.chip = module, chip
        self.axes, self.shape = tuple(mesh_shape), tuple(mesh_shape.values())
        self.by_name = {i.name: i for c in module.computations.values() for i in c.instructions}
        self.pallas = 0.0
        self.items: dict[tuple, list] = {}
        self.sent: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0, 0.0, 0.0])

    def cost(self) -> Cost:
        clock = self._walk(self.module.entry.name, 1)
        items = sorted((Item(cycles, count, *key) for key, (cycles, count) in self.items.items()), reverse=True,
                       key=lambda item: item.cycles)  # fmt: skip
        collectives = [Collective(*key, int(count), sent, waited) for key, (count, sent, waited) in self.sent.items()]
        collectives.sort(key=lambda collective: -collective.ring_bytes)
        return Cost(clock.compute, max(clock.now, clock.wires_free), self.pallas, tuple(items), tuple(collectives))

    def _walk(self, name: str, times: int) -> _Clock:
        """Runs through a computation that runs `times` times in a step."""
        clock, arrival = _Clock(), {}
        for instruction in self.module.computations[name].instructions:
            if instruction.opcode == "while":
                trips = self._trips(instruction)
                body = self._walk(instruction.called["body"][0], times * trips)
                clock.work(trips * body.compute, trips * max(body.now, body.wires_free))
            elif instruction.opcode in ("call", "conditional"):
                branches = [self._walk(branch, times) for called in instruction.called.values() for branch in called]
                longest = max(branches, key=lambda branch: branch.now, default=_Clock())
                clock.work(longest.compute, longest.now)
            elif (transfer := self._transfer(instruction)) is not None:
                self._communicate(clock, arrival, instruction, transfer, times)
            else:
                cycles = self._cycles(instruction)
                if cycles:
                    clock.work(cycles)
                    self._note(instruction, cycles, times)
        return clock

    def _note(self, instruction: Instruction, cycles: float, times: int) -> None:
        key = (
            instruction.opcode, instruction.shape, instruction.op_name, self.module.source(instruction),
        )  # fmt: skip
        spent = self.items.setdefault(key, [0.0, 0])
        spent[0] += cycles * times
        spent[1] += times

    def _cycles(self, instruction: Instruction) -> float:
        if instruction.opcode == "custom-call" and 'custom_call_target="tpu_custom_call"' in instruction.attributes:
            cycles = self._pallas_cycles(instruction)
            self.pallas += cycles
            return cycles
        return instruction.estimated_cycles

    def _pallas_cycles(self, instruction: Instruction) -> float:
        flops = float(instruction.attribute(r'"flops":"?(\d+)') or 0)
        moved = float(instruction.attribute(r'"bytes_accessed":"?(\d+)') or 0)
        moved = moved or sum(array_bytes(*array) for array in instruction.arrays)
        return max(
            flops / (PALLAS_SHARE_OF_PEAK * self.chip.flops_per_cycle),
            moved / (SHARE_OF_HBM_BANDWIDTH * self.chip.hbm_bytes_per_second / self.chip.cycles_per_second),
        )

    def _trips(self, instruction: Instruction) -> int:
        known = instruction.attribute(r'"known_trip_count":\{"n":"(\d+)"')
        if known:
            return int(known)
        condition = self.module.computations[instruction.called["condition"][0]]
        bounds = [int(i.operands) for i in condition.instructions if i.opcode == "constant" and i.operands.isdigit()]
        return max(bounds, default=1)

    def _transfer(self, instruction: Instruction) -> tuple[str, Instruction | None] | None:
        """(`whole`, `start` or `done`, the collective) where the instruction is one, or a fusion around one."""
        for kind in COLLECTIVES:
            if instruction.opcode == kind:
                return "whole", instruction
            if instruction.opcode == f"{kind}-start":
                return "start", instruction
            if instruction.opcode == f"{kind}-done":
                return "done", None
        inner = [i for name in instruction.called.get("calls", ()) for i in self.module.computations[name].instructions]
        collective = next((i for i in inner if i.opcode in COLLECTIVES), None)
        if collective is None or "async_collective_fusion" in instruction.called["calls"][0]:
            return None  # the last: compute under which a collective that was started before goes on
        targets = {i.attribute(r'custom_call_target="(\w+)"') for i in inner if i.opcode == "custom-call"}
        if "AsyncCollectiveStart" in targets:
            return "start", collective
        return ("done", None) if "AsyncCollectiveDone" in targets else ("whole", collective)

    def _communicate(self, clock: _Clock, arrival: dict, instruction: Instruction, transfer: tuple, times: int) -> None:
        phase, collective = transfer
        if phase == "done":
            start = self._start_of(instruction, arrival)
            if start is not None:
                key, due = arrival.pop(start)
                waited = max(due - clock.now, 0.0)
                clock.now += waited
                self.sent[key][2] += times * waited
            return
        kind, axes, sent = self._ring(collective, instruction)
        cycles = sent / self.chip.ring_bytes_per_second * self.chip.cycles_per_second
        begin = max(clock.now, clock.wires_free)
        clock.wires_free = begin + cycles
        total = self.sent[(kind, axes)]
        total[0] += times
        total[1] += times * sent
        if phase == "start":
            arrival[instruction.name] = ((kind, axes), clock.wires_free)
        else:
            total[2] += times * (clock.wires_free - clock.now)
            clock.now = clock.wires_free

    def _start_of(self, done: Instruction, arrival: dict) -> str | None:
        """The start among `arrival` that `done` waits for: back along the operands, through fusions in between."""
        seen, queue = set(), list(done.operand_names)
        while queue and len(seen) < 200:
            name = queue.pop(0)
            if name in arrival:
                return name
            if name not in seen and name in self.by_name:
                seen.add(name)
                queue.extend(self.by_name[name].operand_names[:4])
        return None

    def _ring(self, collective: Instruction, around: Instruction) -> tuple[str, str, float]:
        """(kind, mesh axes, bytes that each chip sends) of a collective."""
        kind = collective.opcode.removesuffix("-start")
        sizes = [array_bytes(*array) for array in collective.arrays if element_bytes(array[0]) and array[1]]
        whole = max(sizes, default=4) if collective.opcode.endswith("-start") else sum(sizes) or 4
        if kind == "collective-permute":
            pairs = re.findall(r"\{(\d+),(\d+)\}", collective.attribute(r"source_target_pairs=(\{\{.*?\}\})") or "")
            return kind, self._axes_of([list(map(int, pair)) for pair in pairs]), float(whole)
        groups = self._groups(collective)
        size = len(groups[0]) if groups else math.prod(self.shape)
        share = (size - 1) / max(size, 1)
        if kind == "all-reduce" and around is not collective and "scatter" in around.called.get("calls", ("",))[0]:
            kind, factor = "reduce-scatter", share  # the compiler's fusion of an all-reduce with a slice of its result
        elif kind == "reduce-scatter":
            factor = share * size  # its result is one part of what is summed
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
        """Partition ids of each group, from any of the three ways in which HLO writes them."""
        text = collective.attributes
        if listed := re.search(r"replica_groups=\{(\{.*?\})\}", text):
            return [list(map(int, group.split(","))) for group in re.findall(r"\{([\d,]+)\}", listed[1])]
        if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
            shape, of, order = (tuple(map(int, part.split(","))) if part else None for part in iota.groups())
            ids = np.arange(math.prod(of)).reshape(of)
            return (ids if order is None else ids.transpose(order)).reshape(shape).tolist()
        if mesh := re.search(r"replica_groups=mesh\[(.*?)\] ?(?:\{([^}]*)\})?", text):
            sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
            named = re.findall(r"'([^']+)'", mesh[2] or "")
            ids = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
            inside = [list(sizes).index(name) for name in named]
            outside = [axis for axis in range(ids.ndim) if axis not in inside]
            return ids.transpose(outside + inside).reshape(-1, math.prod(ids.shape[axis] for axis in inside)).tolist()
        return []
