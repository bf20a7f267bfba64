"""Reads the text of an optimized HLO module: its computations, their instructions in order, and where each comes from.

A reader of text because that is what the compiler hands out: `compiled.as_text()`. Only what a cost estimate needs is
understood; the rest of an instruction is kept as it stands, in `Instruction.attributes`.
"""

import dataclasses
import functools
import math
import re

BYTES = {"pred": 1, "bf16": 2, "c64": 8, "c128": 16, "token": 0, "opaque": 0}  # others carry their bits in their name

_COMPUTATION = re.compile(r"^(ENTRY )?%?([^\s(]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([^\s=]+) = ")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_CALLED = re.compile(
    r"\b(calls|body|condition|to_apply|branch_computations|called_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction: `%name = shape opcode(operands), attributes`."""

    name: str
    shape: str
    opcode: str
    operands: str
    attributes: str

    @functools.cached_property
    def arrays(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """(dtype, dimensions) of every array of the result; of a tuple all."""
        return arrays(self.shape)

    @functools.cached_property
    def operand_names(self) -> tuple[str, ...]:
        """The instructions that it reads."""
        return tuple(re.findall(r"%([\w.\-]+)", self.operands))

    @functools.cached_property
    def called(self) -> dict[str, tuple[str, ...]]:
        """The computations that it names, by attribute: `calls`, `body`, `condition`, ..."""
        return {kind: tuple(re.findall(r"[\w.\-]+", names)) for kind, names in _CALLED.findall(self.attributes)}

    @functools.cached_property
    def estimated_cycles(self) -> int:
        """Cycles as the TPU compiler estimates them; 0 where it says nothing."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.attributes)
        return int(found[1]) if found else 0

    def attribute(self, pattern: str) -> str | None:
        """The first group of `pattern` in the attributes."""
        found = re.search(pattern, self.attributes)
        return found[1] if found else None

    @property
    def op_name(self) -> str:
        """The JAX operation that it comes from, with the transformations around it: `jit(f)/transpose(jvp())/dot`."""
        return self.attribute(r'op_name="([^"]*)"') or ""


@dataclasses.dataclass(frozen=True)
class Computation:
    """A named list of instructions, in the order in which they run."""

    name: str
    instructions: tuple[Instruction, ...]


@dataclasses.dataclass(frozen=True)
class Module:
    """A whole program."""

    computations: dict[str, Computation]
    entry: Computation
    frames: dict[int, tuple[str, int, int]]  # id -> (file, line, id of the caller's frame)

    def source(self, instruction: Instruction, package: str = "gpt_jax") -> str:
        """The innermost line of `package` that the instruction comes from, as `folder/file.py:12`; "" if unknown."""
        frame = int(instruction.attribute(r"stack_frame_id=(\d+)") or 0)
        while frame in self.frames:
            file, line, caller = self.frames[frame]
            if f"/{package}/" in file:
                return f"{file.rpartition(f'/{package}/')[2]}:{line}"
            if caller == frame:
                break
            frame = caller
        return ""


def arrays(shape: str) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """(dtype, dimensions) of every array in the text of a shape."""
    return tuple((dtype, tuple(map(int, filter(None, sizes.split(","))))) for dtype, sizes in _ARRAY.findall(shape))


def array_bytes(dtype: str, sizes: tuple[int, ...]) -> int:
    """Bytes of an array without padding."""
    return math.prod(sizes) * element_bytes(dtype)


def element_bytes(dtype: str) -> int:
    """Bytes of one element; at least 1."""
    if dtype in BYTES:
        return BYTES[dtype]
    bits = re.search(r"\d+", dtype)
    return max(int(bits[0]) // 8, 1) if bits else 0


def parse(text: str) -> Module:
    """The module of `text`.

    Raises:
      ValueError: when there is no entry computation in it.
    """
    computations: dict[str, Computation] = {}
    entry, name, lines = None, None, []
    for line in text.splitlines():
        started = _COMPUTATION.match(line)
        if started:
            name, lines = started[2], []
            entry = name if started[1] else entry
        elif line == "}" and name is not None:
            computations[name] = Computation(name, tuple(map(_instruction, lines)))
            name = None
        elif name is not None and _INSTRUCTION.match(line):
            lines.append(line)
        elif name is not None and lines:
            lines[-1] += line  # the metadata of a Pallas call spans several lines
    if entry is None:
        raise ValueError("no ENTRY computation in this text: is it HLO?")
    return Module(computations, computations[entry], _frames(text))


def _instruction(line: str) -> Instruction:
    named = _INSTRUCTION.match(line)
    rest = line[named.end() :]
    shape_end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:shape_end], rest[shape_end:].lstrip()
    opcode, _, _ = rest.partition("(")
    end = _closing(rest, len(opcode))
    return Instruction(named[1], shape, opcode, rest[len(opcode) + 1 : end], rest[end + 1 :])


def _closing(text: str, start: int) -> int:
    """Where the bracket that opens at `start` closes."""
    depth = 0
    for index in range(start, len(text)):
        depth += (text[index] == "(") - (text[index] == ")")
        if depth == 0:
            return index
    return len(text) - 1


def _frames(text: str) -> dict[int, tuple[str, int, int]]:
    """The table of stack frames, which stands before the computations."""
    head = text.partition("\nENTRY")[0].partition("\n%")[0]

    def table(title: str) -> str:
        found = re.search(rf"^{title}\n((?:\d+ .*\n)*)", head + "\n", re.MULTILINE)
        return found[1] if found else ""

    files = {int(number): name for number, name in re.findall(r'^(\d+) "(.*)"$', table("FileNames"), re.MULTILINE)}
    locations = {
        int(number): (files.get(int(file), ""), int(line))
        for number, file, line in re.findall(r"^(\d+) \{file_name_id=(\d+).*? line=(\d+)", table("FileLocations"), re.M)
    }
    return {
        int(number): (*locations.get(int(location), ("", 0)), int(parent or 0))
        for number, location, parent in re.findall(
            r"^(\d+) \{file_location_id=(\d+)(?: parent_frame_id=(\d+))?", table("StackFrames"), re.M
        )
    }
