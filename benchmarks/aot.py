"""Compile every tuned configuration for every chip it is meant for, without a GPU, and write down what came out.

    python benchmarks/aot.py    # some minutes on two cores; writes results/aot.md, fails where something does not fit

The compiler's word, not a measurement: it says that a kernel fits a chip, not that it is right or fast there. Registers
that spill to the stack are said, not refused: two programs on a multiprocessor can be worth more. float32 has no matrix
unit without TF32: it is there to compare with.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vidsparse_kernels.available import gluon_lacks
from vidsparse_kernels.gpu.backward import ROW_TERMS, row_terms_kernel
from vidsparse_kernels.gpu.configs import GLUON_CANDIDATES, SHARED_MEMORY, TABLE, Config, GluonConfig, family
from vidsparse_kernels.gpu.forward import forward_kernel
from vidsparse_kernels.gpu.key_gradient import ADD_SLOTS, add_slots_kernel, key_gradient_kernel
from vidsparse_kernels.gpu.launch import step_box
from vidsparse_kernels.gpu.primitives import HEADS, SIZES
from vidsparse_kernels.gpu.query_gradient import query_gradient_kernel

if gluon_lacks() is None:
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon._runtime import GluonASTSource

    from vidsparse_kernels.gpu.gluon.kernel import gluon_forward_kernel

CHIPS = {80: (80,), 89: (89, 120), 90: (90,), 100: (100,)}
UNITS = {80: "mma.sync", 89: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}
TILES = {64: (1, 8, 8), 128: (2, 8, 8)}
WALKED = 128
NUMBERS = {2: "bf16", 4: "fp32"}
KERNELS = {
    "forward": forward_kernel,
    "query_gradient": query_gradient_kernel,
    "key_gradient": key_gradient_kernel,
    "row_terms": row_terms_kernel,
    "add_slots": add_slots_kernel,
}
BESIDE = {"row_terms": ROW_TERMS, "add_slots": ADD_SLOTS}  # kernels without a table: options for every chip and size
FLOATS = ("lse", "grad_lse", "row_terms", "sums", "key_norms")
LISTS = ("counts", "whole_counts", "places", "every_place", "extra_valid", "pieces", "slots")
HEADINGS = (
    *("chip", "kernel", "dtype", "head_dim", "tile held", "step/warps/stages/registers"),
    *("registers", "stack", "shared memory", "buffers", "matrix unit", "faults"),
)


@dataclass(frozen=True)
class Build:
    """One configuration for one chip; a GluonConfig is one of the forward."""

    capability: int
    kernel: str
    itemsize: int
    head_dim: int
    held: int
    config: Config | GluonConfig

    @property
    def tma(self) -> bool:
        return 90 <= self.capability < 110

    def compile(self) -> Any:
        """Compile as a launch on a ragged grid with prefix and suffix tokens would."""
        gluon = self.config if isinstance(self.config, GluonConfig) else None
        function = KERNELS[self.kernel] if gluon is None else gluon_forward_kernel
        walked, held = TILES[WALKED], TILES[self.held]
        step = step_box(walked, self.config.step)
        constants: dict[str, Any] = {
            "QUERY_TILE": walked if self.kernel == "key_gradient" else held,
            "KEY_TILE": held if self.kernel == "key_gradient" else walked,
            "STEP": step,
            "HEAD": HEADS[self.head_dim],
            "EXTRA": True,
            "RAGGED": True,
            "BOUNDED": self.itemsize == 2,
            "TMA": self.tma,
            "HEADS_FIRST": (False, False),
            "SECOND": 0,
            "PRECISION": "ieee",
        }
        if gluon is not None:
            constants |= {"STAGES": gluon.stages, "TURNS": gluon.turns}
            shared = gl.NVMMASharedLayout.get_default_for([1, *step, self.head_dim], gl.bfloat16)
        signature: dict[str, Any] = {}
        values: dict[str, Any] = {}
        aligned: list[tuple[int, ...]] = []
        for i, name in enumerate(function.arg_names):
            if name in constants:
                signature[name], values[name] = "constexpr", constants[name]
            elif name.endswith(("boxes_low", "boxes_high")):
                part = HEADS[self.head_dim][name.endswith("high")]
                if self.tma and part:
                    signature[name] = f"tensordesc<{NUMBERS[self.itemsize]}{[1, *step, part]}>".replace(" ", "")
                else:
                    signature[name], values[name] = "constexpr", None
            elif name.endswith("_boxes"):
                box = f"bf16{[1, *step, self.head_dim]}".replace(" ", "")
                signature[name] = f"tensordesc<{box},{shared!r}>"
            elif name.endswith("_strides"):
                signature[name] = ("i32",) * 3
                aligned += [(i, axis) for axis in range(3)]
            elif name in SIZES or name == "scale":
                signature[name] = "fp32" if name == "scale" else "i32"
            else:
                kind = "fp32" if name in FLOATS else "i32" if name in LISTS else NUMBERS[self.itemsize]
                signature[name] = f"*{kind}"
                aligned.append((i,))
        attributes = {place: [["tt.divisibility", 16]] for place in aligned}
        source = (ASTSource if gluon is None else GluonASTSource)(function, signature, values, attributes)
        target = GPUTarget("cuda", self.capability, 32)
        return triton.compile(source, target=target, options={**self.config.options, "enable_fp_fusion": True})


@dataclass(frozen=True)
class Needs:
    """What machine code needs, and how its products are made.

    Attributes:
        registers: of a thread. stack: bytes of a thread, where registers did not suffice.
        shared: bytes of shared memory. buffers: boxes of one tensor that are under way at once.
        unit: the instruction of the matrix unit, "" for none.
        round_trips: boxes that leave shared memory for registers on their way to the matrix unit.
    """

    registers: int
    stack: int
    shared: int
    buffers: int
    unit: str
    round_trips: int


def needs(build: Build) -> Needs:
    """Compile, and read the machine code, as cuobjdump sees it, and Triton's own."""
    compiled = build.compile()
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump printed no resources: {usage}")
    code, machine = compiled.asm["ttgir"], compiled.asm["ptx"]
    unit = next((unit for unit in ("tcgen05.mma", "wgmma.mma_async", "mma.sync") if unit in machine), "")
    if unit and build.tma and "cp.async.bulk.tensor" not in machine:
        unit += " without TMA"
    trips = re.findall(rf"ttg\.local_load .*-> tensor<\d+x{HEADS[build.head_dim][0]}x", code)
    buffers = [int(n) for n in re.findall(r"ttg\.local_alloc : \(\) -> !ttg\.memdesc<(\d+)x\d+x\d+x", code)]
    if isinstance(build.config, GluonConfig):  # its ring holds keys and values
        buffers = [build.config.stages]
    registers, stack = map(int, found.groups())
    return Needs(registers, stack, compiled.metadata.shared, max(buffers, default=1), unit, len(trips))


def faults(build: Build, needed: Needs) -> list[str]:
    """What a configuration that ships must not have. Spills are no fault: the column `stack` says them."""
    chip = family(build.capability)
    found = []
    if needed.shared > SHARED_MEMORY[chip]:
        found.append(f"{needed.shared} bytes of shared memory, of {SHARED_MEMORY[chip]}")
    if build.itemsize == 2 and build.kernel not in BESIDE and needed.unit != UNITS[chip]:
        found.append(f"products by {needed.unit or 'no matrix unit'}, not {UNITS[chip]}")
    if build.itemsize == 2 and chip == 90 and needed.round_trips:
        found.append(f"{needed.round_trips} boxes go through registers")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chip", type=int, action="append", choices=sum(CHIPS.values(), ()), help="this one alone")
    parser.add_argument("--dtype", choices=NUMBERS.values(), help="this one alone")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "aot.md")
    arguments = parser.parse_args()
    builds = [
        Build(capability, kernel, itemsize, head_dim, held, config)
        for (chip, kernel), rows in TABLE.items()
        for capability in CHIPS[chip]
        for (itemsize, head_dim), configs in rows.items()
        for held, config in zip((64, 128), configs, strict=True)
        if config is not None
    ]
    builds += [
        Build(capability, kernel, 2, head_dim, held, Config(held, options["num_warps"], options["num_stages"]))
        for kernel, options in BESIDE.items()
        for capability in sum(CHIPS.values(), ())
        for head_dim in (64, 128)
        for held in (64, 128)
    ]
    builds += [
        Build(90, "forward", 2, head_dim, 128, config)
        for head_dim, configs in (GLUON_CANDIDATES if gluon_lacks() is None else {}).items()
        for config in configs
    ]
    builds = [build for build in builds if build.capability in (arguments.chip or sum(CHIPS.values(), ()))]
    builds = [build for build in builds if NUMBERS[build.itemsize] == (arguments.dtype or NUMBERS[build.itemsize])]
    lines: list[tuple[object, ...]] = [HEADINGS, ("---",) * len(HEADINGS)]
    faulty = []
    with ProcessPoolExecutor() as pool:
        for build, needed in zip(builds, pool.map(needs, builds), strict=True):
            wrong = faults(build, needed)
            name = f"sm_{build.capability}", build.kernel, NUMBERS[build.itemsize], build.head_dim, build.held
            lines.append((*name, build.config, *astuple(needed)[:4], needed.unit or "none", "; ".join(wrong)))
            faulty += [lines[-1]] if wrong else []
    table = "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
    arguments.out.write_text(
        f"# Ahead-of-time compilation with Triton {triton.__version__}\n\n"
        "Made by `python benchmarks/aot.py`, without a GPU: what the compiler says, not what a chip does. Walked tiles "
        "have 128 tokens, the grid is ragged, with prefix and suffix tokens. Stack and shared memory in bytes. Rows "
        "with gluon are of the forward in Gluon, whose threads change their registers: 240 for those that compute, 24 "
        "for those that load.\n\n"
        f"{table}\n"
    )
    spilling = sum(line[7] != 0 for line in lines[2:] if line[2] == "bf16")
    print(
        f"{len(builds)} configurations compiled with Triton {triton.__version__}, {len(faulty)} with faults, "
        f"{spilling} of 2 bytes with spills"
    )
    for line in faulty:
        print(*line, sep=", ")
    sys.exit(bool(faulty))


if __name__ == "__main__":
    main()
