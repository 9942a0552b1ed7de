"""Machine code of NVIDIA's chips as nvdisasm prints it, with what the compiler wrote for the scheduler."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass

import triton

LABEL = re.compile(r"(\.L_\w+):")
LINE = re.compile(
    r"\s*/\*([0-9a-f]{4,})\*/\s+(?:\{\s*)?(?:@!?U?P\w+\s+)?([A-Z][A-Za-z0-9_.]*)(.*?);\s*/\*\s*0x[0-9a-f]+\s*\*/"
)
SECOND_WORD = re.compile(r"\s*/\*\s*(0x[0-9a-f]{16})\s*\*/")
TARGET = re.compile(r"`\((\.L_\w+)\)")


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        address: in bytes. operation: with its suffixes, "HGMMA.64x128x16.F32.BF16". operands: as printed.
        stall: cycles until the same warp may issue again.
        sets: scoreboard that is free when the result is there. reads: one that is free when the operands were read;
            None for none.
        waits: scoreboards that must be free before it issues.
        target: address that it branches to.
    """

    address: int
    operation: str
    operands: str = ""
    stall: int = 1
    sets: int | None = None
    reads: int | None = None
    waits: tuple[int, ...] = ()
    target: int | None = None

    @property
    def name(self) -> str:
        """The operation without its suffixes."""
        return self.operation.split(".")[0]


def disassemble(cubin: bytes) -> list[Instruction]:
    """Every instruction of a cubin, by the nvdisasm that Triton brings."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.nvdisasm.path, "-c", "-hex", file.name]
        return parse(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def parse(listing: str) -> list[Instruction]:
    """Instructions of what `nvdisasm -c -hex` printed.

    Raises:
        ValueError: an instruction without its second word, or a branch to a label that is not there.
    """
    labels: dict[str, int] = {}
    waiting: list[str] = []
    found: list[tuple[int, str, str, int]] = []
    lines = listing.splitlines()
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        if label := LABEL.match(line.strip()):
            waiting.append(label[1])
        elif code := LINE.match(line):
            second = SECOND_WORD.match(after)
            if second is None:
                raise ValueError(f"instruction without its second word, which nvdisasm -hex prints: {line.strip()}")
            labels |= dict.fromkeys(waiting, address := int(code[1], 16))
            waiting.clear()
            found.append((address, code[2], code[3].strip(), int(second[1], 16) >> 41))
    return [_instruction(*words, labels) for words in found]


def _instruction(address: int, operation: str, operands: str, control: int, labels: dict[str, int]) -> Instruction:
    # Turing and later: stall 4 bits, yield 1, set 3, read 3, wait mask 6; 7 stands for no scoreboard.
    sets, reads, mask = control >> 5 & 7, control >> 8 & 7, control >> 11 & 63
    target = None
    if label := TARGET.search(operands):
        if label[1] not in labels:
            raise ValueError(f"{operation} at {address:#x} branches to {label[1]}, which the listing does not have")
        target = labels[label[1]]
    return Instruction(
        address,
        operation,
        operands,
        stall=control & 15,
        sets=sets if sets < 6 else None,
        reads=reads if reads < 6 else None,
        waits=tuple(i for i in range(6) if mask >> i & 1),
        target=target,
    )


def main_loop(code: list[Instruction], having: str | None = None, loads: bool = True) -> list[Instruction]:
    """The loop over whole tiles: of those with matrix products and exponentials the shortest, which has no masks.

    One that has boxes brought by the tensor memory accelerator goes before one that reads rows, such as that over text.

    Args:
        code: of a kernel, in order.
        having: the name of an instruction that the loop must have too.
        loads: whether the warps that multiply are those that have boxes brought.

    Raises:
        ValueError: no loop has them.
    """
    place = {instruction.address: i for i, instruction in enumerate(code)}
    loops = [
        code[place[branch.target] : i + 1]
        for i, branch in enumerate(code)
        if branch.target is not None and branch.target <= branch.address
    ]
    attention = [loop for loop in loops if any(x.name in PRODUCTS for x in loop) and any(is_exp2(x) for x in loop)]
    attention = [loop for loop in attention if having is None or any(x.name == having for x in loop)]
    if not attention:
        also = "" if having is None else f" and {having}"
        raise ValueError(f"none of {len(loops)} loops has products of {', '.join(PRODUCTS)} and MUFU.EX2{also}")
    return min(attention, key=lambda loop: (loads and not any(x.name == "UTMALDG" for x in loop), len(loop)))


PRODUCTS = ("HGMMA", "IGMMA", "QGMMA", "HMMA", "IMMA")


def is_exp2(instruction: Instruction) -> bool:
    """Whether it is an exponential."""
    return instruction.operation.startswith("MUFU.EX2")
