"""Rank launches of the kernels on Hopper by a model of their main loop's machine code, without a GPU.

    python benchmarks/model.py    # every 2-byte row of the table for sm_90; writes results/model.md
    python benchmarks/model.py --config forward,128,128,64/8/2/128 --config key_gradient,64,128,32/4/2    # prints

A configuration is kernel, head_dim, tokens of the tile held, and step/warps/stages[/registers]. The model ranks
launches of one kernel; it is no measurement, and predicts no seconds.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import triton
from aot import TILES, Build, needs
from cycle_model import dense
from cycle_model.hopper import programs
from cycle_model.machine_code import disassemble, main_loop
from cycle_model.simulate import simulate

from vidsparse.atomic import replacing
from vidsparse_kernels.gpu.configs import KERNELS, TABLE, Config, GluonConfig
from vidsparse_kernels.gpu.primitives import HEADS

CHIP, ITEMSIZE = 90, 2
PRODUCTS = {"forward": 2, "query_gradient": 3, "key_gradient": 4}  # of queries x keys x head_dim in a step
MULTIPLY_ADDS = 2048  # of a multiprocessor in a cycle, with operands of 2 bytes
PAIR = 128 * 128
# Triton's tutorial 06, fp16, 4 x 32 heads, 16,384 tokens, an H100, no specialised warps: 487 TFLOP/s (pull request 205
# of facebookexperimental/triton), of 989 in the chip's data sheet.
PUBLISHED = 487 / 989
# What could be twice as fast: the loop's time depends most on what limits it.
RESOURCES = {
    "matrix": "matrix unit",
    "special": "exponentials",
    "alu": "integers and comparisons",
    "fma": "float32",
    "memory": "loads and shuffles",
    "uniform": "uniform unit",
    "issue": "issue slots",
    "barriers": "barriers",
}
HEADINGS = (
    *("kernel", "head_dim", "tile held", "launch", "registers", "stack", "shared memory", "programs", "instructions"),
    *("cycles per 128 x 128", "share", "in turn", "bytes a cycle", "shorter if twice as fast"),
)


@dataclass(frozen=True)
class Modelled:
    """A launch's main loop under the model.

    Attributes:
        registers: of a thread. stack: bytes of a thread. shared: bytes of shared memory of a program.
        programs: on a multiprocessor at once. instructions: of the loop.
        cycles: of a multiprocessor for 128 x 128 pairs of a query and a key.
        share: of them that the matrix unit would take at its full rate. share_in_turn: the same if warps take turns.
        bytes: that a multiprocessor reads in a cycle from the second-level cache.
        limits: what shortens the loop by which part if it is twice as fast; the two that do most.
    """

    registers: int
    stack: int
    shared: int
    programs: int
    instructions: int
    cycles: float
    share: float
    share_in_turn: float
    bytes: float
    limits: tuple[tuple[str, float], ...]

    @property
    def cells(self) -> tuple[str, ...]:
        """As they stand in the table, from `registers` on."""
        limits = ", ".join(f"{RESOURCES[name]} {part:.0%}" for name, part in self.limits if part >= 0.03)
        counts = self.registers, self.stack, self.shared, self.programs, self.instructions, round(self.cycles)
        return (
            *map(str, counts),
            f"{self.share:.2f}",
            f"{self.share_in_turn:.2f}",
            f"{self.bytes:.0f}",
            limits or "nothing by 3 %",
        )


def model(build: Build, maximum: bool = False) -> Modelled:
    """Compile a launch and run its main loop through the model; with `maximum`, the one with the scores' maximum.

    Raises:
        ValueError: another chip than sm_90 or other numbers than of 2 bytes, one stage, a launch that does not fit, or
            an instruction that the model does not know.
    """
    if (build.capability, build.itemsize) != (CHIP, ITEMSIZE):
        raise ValueError(f"{build} is not for sm_{CHIP} with numbers of {ITEMSIZE} bytes, which the model knows alone")
    if build.config.stages < 2:
        raise ValueError(f"{build.config} has one stage: it waits for each box, and the model has all come in time")
    needed, config = needs(build), build.config
    gluon = isinstance(config, GluonConfig)
    warps = 12 if isinstance(config, GluonConfig) else config.warps  # two groups of four, and what loads fills a third
    resident = programs(needed.registers, needed.shared, warps)
    if not resident:
        raise ValueError(f"{build} needs {needed.registers} registers and {needed.shared} bytes: it fits no chip")
    loop = main_loop(disassemble(build.compile().asm["cubin"]), "FMNMX" if maximum else None, loads=not gluon)
    step = min(config.step, build.held)
    # The groups of the forward in Gluon do not wait for each other, as if they were programs.
    apart, groups = (2 * resident, 1) if gluon else (resident, warps // 4)
    cycles = simulate(loop, apart, groups)
    in_turn = simulate(loop, apart, groups, turns=True)
    limits = {name: 1 - simulate(loop, apart, groups, faster=name) / cycles for name in RESOURCES}
    of_step = cycles / resident  # of the multiprocessor, for one step of one program
    share = PRODUCTS[build.kernel] * build.held * step * build.head_dim / MULTIPLY_ADDS / of_step
    return Modelled(
        needed.registers,
        needed.stack,
        needed.shared,
        resident,
        len(loop),
        of_step * PAIR / (build.held * step),
        share,
        share * cycles / in_turn,
        2 * step * build.head_dim * ITEMSIZE / of_step,
        tuple(sorted(limits.items(), key=lambda limit: -limit[1])[:2]),
    )


def dense_share() -> float:
    """The share of the dense loop whose speed is published: the model's calibration."""
    loop = main_loop(disassemble(dense.compile_dense(CHIP).asm["cubin"]))
    ideal = 2 * dense.ROWS * dense.KEYS * dense.CHANNELS / MULTIPLY_ADDS
    return ideal / simulate(loop, 1, dense.WARPS // 4)


def parse(text: str) -> Build:
    """A launch from "kernel,head_dim,tile held,step/warps/stages[/registers]", or "...,gluon/step/stages[/turns]".

    Raises:
        argparse.ArgumentTypeError: what is not one.
    """
    try:
        name, head_dim, held, launch = text.split(",")
        (kernel,) = (kernel for kernel in KERNELS if kernel == name)
        if int(head_dim) not in HEADS or int(held) not in TILES:
            raise ValueError(f"head_dim is one of {list(HEADS)}, the tile held one of {list(TILES)}")
        of_gluon = launch.startswith("gluon")
        if of_gluon and (kernel, held) != ("forward", "128"):
            raise ValueError("the kernel in Gluon is a forward with tiles of 128 tokens")
        config = GluonConfig.parse(launch) if of_gluon else Config(*map(int, launch.split("/")))
        return Build(CHIP, kernel, ITEMSIZE, int(head_dim), int(held), config)
    except (TypeError, ValueError) as error:
        form = f"{'|'.join(KERNELS)},head_dim,tile held,step/warps/stages[/registers]"
        raise argparse.ArgumentTypeError(f"{text!r} is not {form} ({error})") from error


def line(build: Build, maximum: bool) -> tuple[str, ...]:
    """A row of the table."""
    name = f"{build.kernel}, maximum" if maximum else build.kernel
    return name, str(build.head_dim), str(build.held), str(build.config), *model(build, maximum).cells


def table(lines: list[tuple[str, ...]]) -> str:
    """In Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (HEADINGS, ("---",) * len(HEADINGS), *lines))


INTRODUCTION = """# Main loops on sm_90 under a cycle model, compiled with Triton {triton}

Made by `python benchmarks/model.py`, without a GPU: it ranks launches of one kernel, and measures nothing. What runs is
the loop over whole tiles of the build of `aot.md` (ragged grid, text before and after, bfloat16), in the warps of one
quarter of a multiprocessor, in order, with the stalls and scoreboards that the compiler wrote; boxes come in time.

* `forward` is the loop without an online maximum, for scores that the norms bound; `forward, maximum` is the other.
* `cycles per 128 x 128`: of a multiprocessor, for as many pairs of a query and a key.
* `share`: of these cycles, those that the matrix unit would take at its full rate. Calibration: the dense loop of
  Triton's tutorial has {share:.2f} here and {published:.2f} of the data sheet's peak in print, so shares times
  {factor:.2f} are on that scale. Between variants the model errs by 10 % in either direction; what is closer is a tie.
* `in turn`: the share if warps that could issue took turns, where the model lets the last one go on: how much hangs on
  what is not known of the scheduler.
* `bytes a cycle`: what a multiprocessor reads of keys and values (for dK and dV of queries and gradients). Above some
  25 the second-level cache is likely to be the limit, which the model does not see.
* `shorter if twice as fast`: by how much the loop would be shorter if this were, the two that do most.

"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=parse, action="append", help="model this launch and print its row; repeatable")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "model.md")
    arguments = parser.parse_args()
    builds = arguments.config or [
        Build(CHIP, kernel, ITEMSIZE, head_dim, held, config)
        for (chip, kernel), rows in TABLE.items()
        if chip == CHIP
        for (itemsize, head_dim), configs in rows.items()
        if itemsize == ITEMSIZE
        for held, config in zip((64, 128), configs, strict=True)
        if config is not None
    ]
    with ProcessPoolExecutor() as pool:
        loops = [(build, m) for build in builds for m in ((False, True) if build.kernel == "forward" else (False,))]
        lines = list(pool.map(line, *zip(*loops, strict=True)))
    print(table(lines))
    if not arguments.config:
        with replacing(arguments.out) as temporary:
            share = dense_share()
            numbers = dict(triton=triton.__version__, share=share, published=PUBLISHED, factor=PUBLISHED / share)
            temporary.write_text(f"{INTRODUCTION.format(**numbers)}{table(lines)}\n")


if __name__ == "__main__":
    main()
