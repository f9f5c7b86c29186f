"""What devices send each other, read from a compiled program."""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# The compiler writes traffic between TPU slices as transfers through the hosts.
BETWEEN_SLICES = "between slices"

ITEM_BITS = {"pred": 8, "c64": 64, "c128": 128}

_COMPUTATION = re.compile(r"^(ENTRY )?%?([^\s(]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([^\s=]+) = (.*)$")
_OPCODE = re.compile(r"(?:^|[\s})\]])([a-z][\w-]*)\(")
_SHAPE = re.compile(r"\b(pred|bf16|[suf]\d+|f8\w+|c64|c128)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:calls|body|true_computation|false_computation)=%?([^\s,)}]+)")
_CALLED_LISTS = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange between devices.

    Attributes:
      kind: one of `KINDS`, or `BETWEEN_SLICES`.
      operand_bytes: what each device puts in.
      group_size: devices that take part together.
      count: how often a run of the program does it.
    """

    kind: str
    operand_bytes: int
    group_size: int
    count: int

    @property
    def bytes_sent(self) -> float:
        """Bytes that leave each device in all runs, at least: as if every link carried each byte no more than once."""
        share = (self.group_size - 1) / self.group_size
        once = {
            "all-reduce": 2 * share,
            "all-gather": self.group_size - 1,
            "reduce-scatter": share,
            "all-to-all": share,
            "ragged-all-to-all": share,
        }.get(self.kind, 1)
        return self.count * self.operand_bytes * once


def read_collectives(text: str) -> list[Collective]:
    """Reads the collectives of a compiled program, those within loops as often as the loop runs.

    Args:
      text: optimised HLO of one device, as `jax.stages.Compiled.as_text()` gives it.

    Returns:
      One entry for each collective instruction of groups of more than one device.

    Raises:
      ValueError: the text is no HLO module, or a loop with collectives has a length that cannot be read.
    """
    program = _Program(text)
    found: dict[tuple[str, str], Collective] = {}
    for name, times in program.runs().items():
        for instruction in program.computations[name]:
            collective = program.collective(name, instruction, times)
            if collective is None or (collective.group_size == 1 and collective.kind != BETWEEN_SLICES):
                continue
            if times == 0:
                raise ValueError(f"a loop around {instruction.name} has no length that can be read")
            # The compiler may cut one exchange into several instructions of the same channel.
            channel = re.search(r"channel_id=(\d+)", instruction.text)
            found[collective.kind, channel[1] if channel else instruction.name] = collective
    return list(found.values())


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    opcode: str
    result: str
    text: str

    def operands(self) -> list[str]:
        """Names of the operands."""
        start = self.text.index(f"{self.opcode}(") + len(self.opcode)
        depth = 0
        for end in range(start, len(self.text)):
            depth += {"(": 1, ")": -1}.get(self.text[end], 0)
            if depth == 0:
                break
        return re.findall(r"%([^\s,()]+)", self.text[start:end])


class _Program:
    """The computations of an HLO module."""

    def __init__(self, text: str):
        self.computations: dict[str, list[_Instruction]] = {}
        self.entry = ""
        current: list[_Instruction] = []
        for line in text.splitlines():
            head = _COMPUTATION.match(line)
            if head:
                current = self.computations.setdefault(head[2], [])
                self.entry = head[2] if head[1] else self.entry
                continue
            body = _INSTRUCTION.match(line)
            opcode = _OPCODE.search(body[2]) if body else None
            if body and opcode:
                current.append(_Instruction(body[1], opcode[1], body[2][: opcode.start(1)], body[2]))
        if not self.entry:
            raise ValueError("no HLO module: it has no ENTRY computation")
        self.types = {
            name: {instruction.name: instruction.result for instruction in instructions}
            for name, instructions in self.computations.items()
        }

    def runs(self) -> Mapping[str, int]:
        """How often each computation runs; 0 if it is within a loop of unknown length."""
        runs: Counter[str] = Counter()

        def visit(name: str, times: int) -> None:
            runs[name] += times
            for instruction in self.computations[name]:
                if instruction.opcode in ("async-update", "async-done"):
                    continue  # they name the computation that async-start has run
                inner = times
                if instruction.opcode == "while":
                    inner = times * (self.trip_count(instruction) or 0)
                for called in _called(instruction.text):
                    visit(called, inner)

        visit(self.entry, 1)
        return runs

    def trip_count(self, loop: _Instruction) -> int | None:
        """How often a loop's body runs: what XLA says, or the number that its counter from 0 stays below."""
        known = re.search(r"known_trip_count\D*(\d+)", loop.text)
        if known:
            return int(known[1])
        condition = re.search(r"condition=%?([^\s,)}]+)", loop.text)
        instructions = self.computations[condition[1]] if condition else []
        limits = [re.search(r"constant\((\d+)\)", each.text) for each in instructions if each.opcode == "constant"]
        numbers = {int(limit[1]) for limit in limits if limit}
        ends = [each for each in instructions if "direction=LT" in each.text or each.opcode == "fusion"]
        return numbers.pop() if len(numbers) == 1 and ends else None

    def collective(self, computation: str, instruction: _Instruction, times: int) -> Collective | None:
        """The exchange that an instruction is, or None."""
        kind = instruction.opcode.removesuffix("-start")
        if kind == "send":
            kind = BETWEEN_SLICES
        elif kind not in KINDS:
            return None
        elif kind == "all-reduce" and "all-reduce-scatter" in computation:
            kind = "reduce-scatter"
        types = self.types[computation]
        operands = instruction.operands()[:1] if kind == BETWEEN_SLICES else instruction.operands()
        size = sum(type_bytes(types.get(operand, "")) for operand in operands)
        group = 1 if kind == BETWEEN_SLICES else group_size(instruction.text)
        return Collective(kind, size, group, times)


def _called(text: str) -> Iterator[str]:
    yield from _CALLED.findall(text)
    for names in _CALLED_LISTS.findall(text):
        yield from re.findall(r"%?([^\s,]+)", names)


def type_bytes(text: str) -> int:
    """Bytes of all arrays in an HLO type, such as `(bf16[2,8]{1,0}, f32[])`."""
    total = 0
    for dtype, shape in _SHAPE.findall(text):
        bits = ITEM_BITS.get(dtype) or int(re.search(r"\d+", dtype)[0])  # type: ignore[index]
        total += math.prod(int(size) for size in shape.split(",") if size) * bits // 8
    return total


def group_size(text: str) -> int:
    """Devices of one group of a collective instruction: `{{0,1},{2,3}}`, `[2,2]<=[4]` or `mesh['a'=2,'b'=2] {'b'}`."""
    pairs = re.search(r"source_target_pairs=\{\{(\d+),", text)
    if pairs:
        return 2
    explicit = re.search(r"replica_groups=\{\{([\d,]+)\}", text)
    if explicit:
        return len(explicit[1].split(","))
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]", text)
    if iota:
        return int(iota[2])
    named = re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\([^{]*\))? ?\{([^}]*)\}", text)
    if named:
        sizes = {axis: int(size) for axis, size in re.findall(r"('[^']+')=(\d+)", named[1])}
        # Part of an axis is written 'axis':(before)size.
        axes = re.findall(r"('[^']+')(?::\(\d+\)(\d+))?", named[2])
        return math.prod(int(part) if part else sizes[axis] for axis, part in axes)
    raise ValueError(f"cannot read the groups of: {text[:200]}")


def by_kind(collectives: Sequence[Collective]) -> dict[str, tuple[int, float]]:
    """How many exchanges of each kind there are in a run, and the bytes that leave each device by them."""
    kinds = {each.kind for each in collectives}
    return {
        kind: (
            sum(each.count for each in collectives if each.kind == kind),
            float(np.sum([each.bytes_sent for each in collectives if each.kind == kind])),
        )
        for kind in sorted(kinds)
    }
