"""Reads the text of an optimized HLO module: its computations, their instructions in order, and where each comes from.

A reader of text because that is what the compiler hands out: `compiled.as_text()`. Only what a cost estimate needs is
understood; the rest of an instruction is kept as it stands, in `Instruction.attributes`.
"""

import dataclasses
import functools
import math
import re
from pathlib import Path

BYTES = {"pred": 1, "bf16": 2, "c64": 8, "c128": 16, "token": 0, "opaque": 0}  # others carry their bits in their name

PACKAGE = str(Path(__file__).resolve().parents[1])

_COMPUTATION = re.compile(r"^(ENTRY )?%?([^\s(]+) \(.*\{$")
_COMPUTATION_END = re.compile(r"^\}(, execution_thread=.*)?$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([^\s=]+) = ")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_CALLED = re.compile(
    r"\b(calls|body|condition|to_apply|branch_computations|true_computation|false_computation|called_computations)="
    r"(\{[^}]*\}|%?[\w.\-]+)"
)
_BRACKETS = re.compile(r"[(){}\[\],]")
_MOVES = ("copy", "copy-start", "copy-done", "bitcast", "convert", "reshape", "broadcast")  # of a number that stays it


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
    def elements(self) -> tuple[str, ...]:
        """The shapes that a tuple holds, themselves perhaps tuples; of an array its own."""
        return _split(self.shape[1:-1]) if self.shape.startswith("(") else (self.shape,)

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
    """A named list of instructions, in the order in which they run; `root` is the one whose result is returned."""

    name: str
    instructions: tuple[Instruction, ...]
    root: Instruction


@dataclasses.dataclass(frozen=True)
class Module:
    """A whole program."""

    computations: dict[str, Computation]
    entry: Computation
    frames: dict[int, tuple[str, int, int]]  # id -> (file, line, id of the caller's frame)

    @functools.cached_property
    def by_name(self) -> dict[str, Instruction]:
        """Every instruction; their names are unique in a module."""
        return {i.name: i for computation in self.computations.values() for i in computation.instructions}

    def source(self, instruction: Instruction, package: str = PACKAGE) -> str:
        """The innermost line of the folder `package` behind the instruction, as `models/layers.py:12`; "" if none."""
        frame = int(instruction.attribute(r"stack_frame_id=(\d+)") or 0)
        while frame in self.frames:
            file, line, caller = self.frames[frame]
            if file.startswith(f"{package}/"):
                return f"{file.removeprefix(f'{package}/')}:{line}"
            if caller == frame:
                break
            frame = caller
        return ""

    def trips(self, loop: Instruction) -> int:
        """How often the body of the `while` instruction runs; 1 where that cannot be read.

        Some compilers write it down. Else the loop counts: from a constant, by a constant (an unrolled body by more
        than 1), to the constant that its condition compares with.
        """
        if known := loop.attribute(r'"known_trip_count":\{"n":"(\d+)"'):
            return int(known)
        condition = self.computations[loop.called["condition"][0]]
        before, after = self.by_name.get(loop.operand_names[0]), self.computations[loop.called["body"][0]].root
        first, step, bound = 0, 1, None
        for name in condition.root.operand_names:
            place = self._place(name)
            if place is None:
                bound = self._constant(name)
            elif before is not None and before.opcode == after.opcode == "tuple":
                start = self._constant(before.operand_names[place])
                change = self._added(after.operand_names[place])
                if change:
                    first, step = start or 0, change
                elif bound is None:
                    bound = start  # one that the loop only hands on
        if bound is None:
            constants = (self._constant(i.name) for i in condition.instructions if i.opcode == "constant")
            bound = max((constant for constant in constants if constant is not None), default=1)
        limit = bound + ("direction=LE" in condition.root.attributes)
        return max(math.ceil((limit - first) / step), 1)

    def _place(self, name: str) -> int | None:
        """Which element of a tuple `name` is, where it is one."""
        instruction = self.by_name.get(name)
        element = instruction is not None and instruction.opcode == "get-tuple-element"
        return int(instruction.attribute(r"index=(\d+)")) if element else None

    def _constant(self, name: str) -> int | None:
        """The integer that `name` stands for."""
        instruction = self.by_name.get(name)
        while instruction is not None and instruction.opcode in _MOVES:
            instruction = self.by_name.get(instruction.operand_names[0])
        written = instruction is not None and instruction.opcode == "constant"
        return int(instruction.operands) if written and re.fullmatch(r"-?\d+", instruction.operands) else None

    def _added(self, name: str) -> int | None:
        """What `name` adds to a number, where it is a sum with a constant."""
        instruction = self.by_name.get(name)
        while instruction is not None and instruction.opcode in _MOVES:
            instruction = self.by_name.get(instruction.operand_names[0])
        operands = instruction.operand_names if instruction is not None else ()
        if instruction is not None and instruction.opcode == "fusion":
            instruction = self.computations[instruction.called["calls"][0]].root
            operands += instruction.operand_names
        if instruction is None or instruction.opcode != "add":
            return None
        return next((constant for operand in operands if (constant := self._constant(operand)) is not None), None)


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
        elif name is not None and _COMPUTATION_END.match(line):
            computations[name] = _computation(name, lines)
            name = None
        elif name is not None and _INSTRUCTION.match(line):
            lines.append(line)
        elif name is not None and lines:
            lines[-1] += line  # the metadata of a Pallas call spans several lines
    if entry is None:
        raise ValueError("no ENTRY computation in this text: is it HLO?")
    return Module(computations, computations[entry], _frames(text))


def _computation(name: str, lines: list[str]) -> Computation:
    instructions = tuple(map(_instruction, lines))
    roots = [i for i, line in zip(instructions, lines, strict=True) if line.lstrip().startswith("ROOT ")]
    return Computation(name, instructions, roots[0])


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
    for bracket in re.compile(r"[()]").finditer(text, start):
        depth += 1 if bracket[0] == "(" else -1
        if depth == 0:
            return bracket.start()
    return len(text) - 1


def _split(text: str) -> tuple[str, ...]:
    """The parts of `text` between the commas that stand in no bracket."""
    depth, begin, parts = 0, 0, []
    for found in _BRACKETS.finditer(text):
        depth += (found[0] in "([{") - (found[0] in ")]}")
        if found[0] == "," and depth == 0:
            parts.append(text[begin : found.start()])
            begin = found.end()
    return tuple(re.sub(r"/\*.*?\*/", "", part).strip() for part in (*parts, text[begin:]) if part.strip())


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
