"""What an instruction costs on a quarter of a Hopper multiprocessor (sm_90): its unit, for how long, and its latency.

A quarter issues one instruction a cycle, of any of its warps. NVIDIA publishes the rates (CUDA C++ Programming Guide,
throughput of native arithmetic instructions; tensor cores: H100 white paper); latencies are rounded, of this generation
and the one before. They count only where an instruction sets a scoreboard: the others are in the stall counts of the
machine code.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cycle_model.machine_code import Instruction

# 32 lanes a cycle: 1; 16 lanes: 2; 4 lanes: 8. "none" are branches and waits, which take an issue slot alone.
UNITS: dict[str, tuple[float, tuple[str, ...]]] = {
    "fma": (1, ("FADD", "FMUL", "FFMA", "IMAD", "CS2R")),
    "alu": (
        2,
        (
            *("FMNMX", "FSEL", "FSETP", "F2FP", "I2FP", "IABS", "IADD3", "IMNMX", "ISETP", "LEA", "LOP3", "MOV", "P2R"),
            *("PLOP3", "PRMT", "R2P", "SEL", "SGXT", "BMSK", "SHF", "VIADD", "VIADDMNMX", "VIMNMX"),
        ),
    ),
    "special": (8, ("MUFU", "F2I", "I2F", "F2F", "FLO", "POPC")),
    "uniform": (
        2,
        (
            *("UFLO", "UIADD3", "UIMAD", "UISETP", "ULDC", "ULEA", "ULOP3", "UMOV", "UP2UR", "UPLOP3", "UPRMT", "USEL"),
            *("USGXT", "USHF", "UPOPC", "UBMSK"),
        ),
    ),
    "memory": (
        2,
        (
            *("LDG", "LDGSTS", "LDL", "LDS", "LDSM", "SHFL", "STG", "STL", "STS", "STSM", "SYNCS", "UBLKCP", "UTMALDG"),
            *("UTMASTG", "ATOMG", "ATOMS", "RED"),
        ),
    ),
    "none": (
        1,
        (
            *("ARRIVES", "BAR", "BRA", "BRX", "BSSY", "BSYNC", "CALL", "DEPBAR", "ELECT", "EXIT", "FENCE", "LDC"),
            *("LDGDEPBAR", "MEMBAR", "NANOSLEEP", "NOP", "R2UR", "RET", "S2R", "S2UR", "UTMACMDFLUSH", "VOTE", "VOTEU"),
            *("WARPGROUP", "WARPSYNC", "YIELD", "CCTL", "UTMACCTL", "ERRBAR", "BREAK", "BMOV", "UR2R"),
        ),
    ),
}
UNIT_OF = {name: (unit, cycles) for unit, (cycles, names) in UNITS.items() for name in names}
LATENCY = dict(MUFU=22, I2F=22, F2I=22, R2UR=12, VOTEU=12, ELECT=12, S2R=20, S2UR=20, ULDC=10, LDC=30)
# A main loop loads list entries alone: of eight in a row seven come from the first-level cache, one from the second.
LATENCY |= dict(SHFL=24, LDS=28, LDSM=33, LDL=40, LDGSTS=20, SYNCS=20, LDG=(7 * 33 + 270) // 8)
OTHER_LATENCY, OPERANDS_READ, MATRIX_LATENCY, MATRIX_START, BARRIER = 25, 12, 20, 8, 25
SHARED_BYTES = 128  # a cycle, of the whole multiprocessor
# mma.sync does not reach what wgmma does: 63 % (Luo et al. 2024, arXiv 2402.13499).
WARP_PRODUCTS = 0.63

REGISTERS, SHARED_MEMORY, WARPS, PROGRAMS = 65536, 233472, 64, 32
RESERVED_SHARED = 1024  # of each program


@dataclass(frozen=True)
class Cost:
    """What an instruction takes.

    Attributes:
        unit: "fma", "alu", "special", "uniform", "memory", "matrix" or "none".
        cycles: until the unit takes the next one.
        latency: cycles until its result is there, where it sets a scoreboard.
    """

    unit: str
    cycles: float
    latency: float


def cost(instruction: Instruction) -> Cost:
    """What an instruction costs.

    Raises:
        ValueError: an instruction that the model does not know.
    """
    name = instruction.name
    if name in ("HGMMA", "IGMMA", "QGMMA"):
        return Cost("matrix", _warpgroup_product(instruction), MATRIX_LATENCY)
    if name in ("HMMA", "IMMA"):
        return Cost("matrix", _warp_product(instruction), MATRIX_LATENCY)
    if name not in UNIT_OF:
        where = f"{instruction.operation} {instruction.operands} at {instruction.address:#x}"
        raise ValueError(f"the cycle model does not know the instruction {where}: add it to UNITS of hopper.py")
    return Cost(*UNIT_OF[name], LATENCY.get(name, OTHER_LATENCY))


def _warpgroup_product(instruction: Instruction) -> float:
    """64 x columns products of 32 bytes: half the columns, or what reading the operands from shared memory takes."""
    shape = re.match(r"\w+\.64x(\d+)x\d+", instruction.operation)
    if shape is None:
        raise ValueError(f"the cycle model cannot read the shape of {instruction.operation}")
    columns = int(shape[1])
    rows_from_shared = instruction.operands.split(",")[1].strip().startswith("gdesc")
    return max(columns / 2, ((64 if rows_from_shared else 0) + columns) * 32 / SHARED_BYTES)


def _warp_product(instruction: Instruction) -> float:
    """16 x 8 products: 4 cycles for 32 bytes of each operand's rows at the full rate."""
    shape = re.match(r"\w+\.168(\d+)", instruction.operation)
    if shape is None:
        raise ValueError(f"the cycle model cannot read the shape of {instruction.operation}")
    full = {"8": 2, "16": 4, "32": 4}[shape[1]]
    return full / WARP_PRODUCTS


def programs(registers: int, shared: int, warps: int) -> int:
    """How many programs a multiprocessor holds: their registers of a thread, bytes of shared memory, and warps."""
    by_registers = REGISTERS // (-(-registers // 8) * 8 * 32 * warps)
    return min(by_registers, SHARED_MEMORY // (shared + RESERVED_SHARED), WARPS // warps, PROGRAMS)
