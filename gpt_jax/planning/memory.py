"""Where a chip's memory goes: what stays from step to step exactly, what is temporary by what is alive at its peak."""

import math
import re
from collections import Counter

import jax

from gpt_jax.planning.hlo import Instruction, Module, array_bytes

# The same numbers in another place.
_MOVES = ("copy", "copy-start", "copy-done", "slice-start", "slice-done", "bitcast")
# Names of memory that another instruction made.
_ALIASES = ("parameter", "tuple", "get-tuple-element", "bitcast", "constant", "while", "optimization-barrier")


def shard_bytes(tree) -> int:
    """Bytes of a tree of abstract arrays with shardings on one device."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def total_bytes(said) -> int:
    """All that a program needs on one device, by the compiler's `memory_analysis()`."""
    return (
        said.argument_size_in_bytes + said.output_size_in_bytes - said.alias_size_in_bytes + said.temp_size_in_bytes
        + said.generated_code_size_in_bytes
    )  # fmt: skip


def temporary_parts(module: Module, total: int, parameter_shapes: set[tuple[int, ...]], vocabulary: set[int]) -> dict:
    """`total` bytes of temporaries divided by what is alive when most is: logits, gradients, activations, the rest.

    The compiler says how much, not what. So the entry computation's buffers are followed through the schedule, told
    apart by the operation that made them and by their shape, and the parts at the peak scaled to `total`.

    Args:
      parameter_shapes: of one layer's and all other parameters, whole and divided; vocabulary: V, whole and divided.
    """
    by_name = {instruction.name: instruction for instruction in module.entry.instructions}

    def origin(instruction: Instruction) -> Instruction:
        while instruction.opcode in _MOVES and instruction.operand_names[0] in by_name:
            instruction = by_name[instruction.operand_names[0]]
        return instruction

    sizes: Counter[str] = Counter()
    for instruction in _alive_at_peak(module):
        for (_, shape), size in zip(instruction.arrays, _hbm_sizes(instruction), strict=True):
            if size:
                sizes[_kind(origin(instruction), shape, parameter_shapes, vocabulary)] += size
    scale = total / max(sum(sizes.values()), 1)
    parts = {kind: round(scale * sizes[kind]) for kind in ("activations", "gradients", "logits")}
    return parts | {"temporaries": total - sum(parts.values())}


def _kind(instruction: Instruction, shape: tuple, parameter_shapes: set[tuple[int, ...]], vocabulary: set[int]) -> str:
    name = instruction.op_name
    squeezed = tuple(size for size in shape if size != 1)
    if squeezed in parameter_shapes:
        return "gradients" if "transpose(" in name or "dot_general" in name else "temporaries"
    if vocabulary & set(shape):
        return "logits"
    return "activations" if "transpose(" not in name and ("jvp(" in name or "checkpoint" in name) else "temporaries"


def _hbm_sizes(instruction: Instruction) -> list[int]:
    """Bytes of each array of the result, 0 for those in the chip's fast memory (space 1 and up)."""
    texts = re.findall(r"[a-z]\w*\[[\d,]*\](?:\{[^}]*\})?", instruction.shape)
    sizes = [
        0 if re.search(r"S\([1-9]\)", text) else array_bytes(*array)
        for text, array in zip(texts, instruction.arrays, strict=True)
    ]
    if instruction.opcode in ("copy-start", "slice-start"):  # the source stands beside the destination
        destination = 0 if instruction.opcode == "copy-start" else 1
        sizes = [size if index == destination else 0 for index, size in enumerate(sizes)]
    return sizes


def _alive_at_peak(module: Module) -> list[Instruction]:
    """The instructions of the entry computation whose results are in memory when most is."""
    instructions = module.entry.instructions
    made_by = {}  # name -> the instructions whose memory it names
    for instruction in instructions:
        if instruction.opcode in _ALIASES or instruction.opcode.endswith("-done"):
            behind = [made_by.get(name, ()) for name in instruction.operand_names]
            made_by[instruction.name] = tuple(dict.fromkeys(name for names in behind for name in names))
        else:
            made_by[instruction.name] = (instruction.name,)
    last_use = {}
    for index, instruction in enumerate(instructions):
        for name in (instruction.name, *instruction.operand_names):
            for maker in made_by.get(name, ()):
                last_use[maker] = index
    size = {i.name: sum(_hbm_sizes(i)) for i in instructions if made_by[i.name] == (i.name,)}
    ending: dict[int, list[str]] = {}
    for name, index in last_use.items():
        ending.setdefault(index, []).append(name)
    now, most, peak = 0, -1, 0
    for index, instruction in enumerate(instructions):
        now += size.get(instruction.name, 0)
        if now > most:
            most, peak = now, index
        now -= sum(size.get(name, 0) for name in ending.get(index, ()))
    born = {instruction.name: index for index, instruction in enumerate(instructions)}
    return [i for i in instructions if i.name in size and born[i.name] <= peak <= last_use[i.name]]
