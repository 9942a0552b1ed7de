"""The cycle model: machine code that can be reckoned by hand, and the main loops of compiled kernels."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
from cycle_model import hopper  # noqa: E402
from cycle_model.machine_code import Instruction, main_loop, parse  # noqa: E402
from cycle_model.simulate import simulate  # noqa: E402

SHARED, REGISTERS = "R24, gdesc[UR4], R24", "R24, R88, gdesc[UR4].tnspB, R24"
LISTING = """
.L_x_1:
        /*0000*/               @P4 UTMALDG.5D [UR8], [UR6] ;                  /* 0x00000008060075b4 */
                                                                              /* 0x0003d80008200000 */
        /*0010*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24, gsb0 ;  /* 0x01e0000004187df0 */
                                                                              /* 0x004fe20008701818 */
        /*0020*/                   MUFU.EX2 R5, R4 ;                          /* 0x0000000400057308 */
                                                                              /* 0x0002a20000000800 */
        /*0030*/              @!P0 BRA `(.L_x_1) ;                            /* 0xfffffffc00f08947 */
                                                                              /* 0x000fea000383ffff */
"""


def code(operation: str, operands: str = "", **fields: Any) -> Instruction:
    return Instruction(0, operation, operands, **fields)


def cycles(loop: list[Instruction], programs: int = 1, groups: int = 1, **what: Any) -> float:
    return simulate(loop, programs, groups, **what)


def test_a_listing_is_read_with_what_the_scheduler_gets() -> None:
    load, product, exponential, branch = parse(LISTING)
    assert (load.operation, load.operands, load.stall, load.reads) == ("UTMALDG.5D", "[UR8], [UR6]", 12, 1)
    assert (product.name, product.stall, product.waits) == ("HGMMA", 1, (2,))
    assert (exponential.sets, exponential.reads, exponential.address) == (2, 1, 0x20)
    assert (branch.target, branch.stall, branch.waits, branch.sets) == (0, 5, (), None)
    with pytest.raises(ValueError, match=r"branches to \.L_x_2"):
        parse(LISTING.replace("`(.L_x_1)", "`(.L_x_2)"))
    with pytest.raises(ValueError, match="without its second word"):
        parse("\n".join(LISTING.splitlines()[:3]))


def test_the_main_loop_is_the_shortest_that_has_boxes() -> None:
    def loop(first: int, *names: str) -> list[Instruction]:
        found = [Instruction(first + 16 * i, name, SHARED) for i, name in enumerate(names)]
        return [*found, Instruction(first + 16 * len(names), "BRA", target=first)]

    masked = loop(0, "UTMALDG.5D", "HGMMA.64x64x16.F32.BF16", "FSEL", "MUFU.EX2")
    whole = loop(0x100, "UTMALDG.5D", "HGMMA.64x64x16.F32.BF16", "MUFU.EX2")
    text = loop(0x200, "HGMMA.64x64x16.F32.BF16", "MUFU.EX2")
    spin = loop(0x300, "SYNCS.PHASECHK.TRANS64.TRYWAIT")
    assert main_loop([*masked, *whole, *text, *spin]) == whole
    assert main_loop([*text, *spin]) == text
    assert main_loop([*masked, *whole], having="FSEL") == masked
    with pytest.raises(ValueError, match=r"none of 2 loops .* and FMNMX"):
        main_loop([*masked, *whole], having="FMNMX")
    with pytest.raises(ValueError, match="none of 1 loops"):
        main_loop(spin)


def test_one_warp_takes_the_sum_of_its_stalls() -> None:
    assert cycles([code("FFMA", stall=4), code("FFMA", stall=4), code("BRA", stall=5)]) == 13


def test_a_scoreboard_waits_for_the_latency() -> None:
    chain = [code("MUFU.EX2", sets=0), code("FADD", waits=(0,), stall=4)]
    assert cycles(chain) == hopper.LATENCY["MUFU"] + 4
    assert cycles([chain[0], code("FADD", stall=9)]) == 10


@pytest.mark.parametrize(
    ("operation", "each"), [("FFMA", 1), ("FMNMX", 2), ("MUFU.EX2", 8), ("UIADD3", 2), ("STS.128", 2)]
)
def test_warps_share_a_unit(operation: str, each: int) -> None:
    loop = [code(operation)] * 40
    assert cycles(loop, programs=2, groups=2) == pytest.approx(4 * 40 * each, rel=0.02)


def test_units_work_side_by_side() -> None:
    loop = [code("MUFU.EX2")] * 10 + [code("FMNMX")] * 30
    assert cycles(loop, programs=4) == pytest.approx(4 * 80, rel=0.1)  # not 80 + 60 each


def test_what_limits_a_loop_shortens_it_when_it_is_faster() -> None:
    loop = [code("MUFU.EX2")] * 40 + [code("FFMA", stall=2)] * 40
    slow = cycles(loop, programs=4)
    assert cycles(loop, programs=4, faster="special") == pytest.approx(slow / 2, rel=0.05)
    assert cycles(loop, programs=4, faster="fma") == pytest.approx(slow, rel=0.01)
    full = [code("FFMA")] * 40
    assert cycles(full, programs=4) == pytest.approx(160, rel=0.02)
    assert cycles([code("NOP")] * 40, programs=4, faster="issue") == pytest.approx(80, rel=0.02)


def test_products_take_half_their_columns_and_are_waited_for() -> None:
    product = "HGMMA.64x128x16.F32.BF16"
    chain = [code(product, REGISTERS)] * 7 + [code(product, REGISTERS + ", gsb0")]
    wait = [code("WARPGROUP.DEPBAR.LE", "gsb0, 0x0")]
    one = cycles(chain + wait)
    assert one == pytest.approx(hopper.MATRIX_START + 8 * 64 + hopper.MATRIX_LATENCY, abs=2)
    # Two programs take turns: what one waits for is hidden by the other.
    assert cycles(chain + wait, programs=2) == pytest.approx(2 * 8 * 64, rel=0.01)
    # Waited for one round later, one program hides it itself.
    assert cycles([*chain, code("WARPGROUP.DEPBAR.LE", "gsb0, 0x1")]) == pytest.approx(8 * 64, rel=0.01)


@pytest.mark.parametrize(("columns", "operands", "each"), [(32, REGISTERS, 16), (32, SHARED, 24), (128, SHARED, 64)])
def test_operands_from_shared_memory_slow_narrow_products_down(columns: int, operands: str, each: int) -> None:
    name, wait = f"HGMMA.64x{columns}x16.F32.BF16", code("WARPGROUP.DEPBAR.LE", "gsb0, 0x0")
    loop = [*[code(name, operands)] * 7, code(name, f"{operands}, gsb0"), wait]
    assert cycles(loop, groups=4) == pytest.approx(4 * 8 * each, rel=0.01)


def test_products_of_a_warp_are_slower_than_those_of_a_group() -> None:
    assert hopper.cost(code("HMMA.16816.F32.BF16")).cycles == pytest.approx(4 / 0.63)


def test_groups_meet_at_a_barrier_of_the_program_and_not_at_their_own() -> None:
    work, everybody = [code("FFMA", stall=10)] * 10, code("BAR.SYNC.DEFER_BLOCKING", "0x0")
    own = code("BAR.SYNC.DEFER_BLOCKING", "0x1, 0x80")
    assert cycles([*work, everybody], groups=2) == pytest.approx(100 + hopper.BARRIER, abs=5)
    assert cycles([*work, own], groups=2) == pytest.approx(100 + hopper.BARRIER, abs=5)
    # A group alone with the matrix unit leaves the other behind; at a barrier of the program it waits for it.
    product = [code("HGMMA.64x256x16.F32.BF16", SHARED + ", gsb0"), code("WARPGROUP.DEPBAR.LE", "gsb0, 0x0")]
    apart, together = (cycles([*product, *work, barrier], groups=2) for barrier in (own, everybody))
    assert together > apart + 50


def test_an_unknown_instruction_is_named() -> None:
    with pytest.raises(ValueError, match=r"does not know the instruction TCGEN05\.MMA R1 at 0x40"):
        simulate([code("FFMA"), Instruction(0x40, "TCGEN05.MMA", "R1")], 1, 1)
    with pytest.raises(ValueError, match=r"shape of HGMMA\.SP"):
        simulate([code("HGMMA.SP.64x128x32.F32", SHARED)], 1, 1)


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "expected"),
    [(128, 98320, 8, 2), (129, 98320, 8, 1), (255, 0, 8, 1), (168, 41984, 4, 3), (32, 0, 4, 16), (32, 240000, 4, 0)],
)
def test_programs_share_a_multiprocessor(registers: int, shared: int, warps: int, expected: int) -> None:
    assert hopper.programs(registers, shared, warps) == expected


def compiled(*arguments: str) -> str:
    """Run in a process of its own: where kernels are interpreted, they cannot be compiled."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=BENCHMARKS, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_compiled_kernels_have_a_share_of_the_matrix_unit() -> None:
    launches = "forward,64,64,64/4/2", "key_gradient,96,64,32/4/2"
    printed = compiled("model.py", *(part for launch in launches for part in ("--config", launch)))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines()[2:]]
    assert [",".join(row[:4]) for row in rows] == [
        launches[0],
        launches[0].replace(",", ", maximum,", 1),
        *launches[1:],
    ]
    assert int(rows[0][8]) < int(rows[1][8])
    for row in rows:
        programs, instructions, pair, share, in_turn = *map(int, row[7:10]), *map(float, row[10:12])
        assert 1 <= programs <= 4 and 200 < instructions < 1500 and 0.2 < share < 1
        assert 0.6 < in_turn / share < 1.6
        products = {"forward": 2, "key_gradient": 4}[row[0].split(",")[0]]
        assert share == pytest.approx(products * 128 * 128 * int(row[1]) / 2048 / pair, abs=0.006)
        assert re.search(r"[a-z ]+ \d+%", row[13])


def test_the_dense_loop_has_the_share_that_the_model_is_calibrated_by() -> None:
    share = float(compiled("-c", "import model; print(model.dense_share())"))
    assert 0.5 < share < 0.65


@pytest.mark.parametrize("launch", ["forward,128,128,64/8", "backward,128,128,64/8/2", "forward,100,64,64/8/2"])
def test_what_is_no_launch_is_refused(launch: str) -> None:
    done = subprocess.run([sys.executable, BENCHMARKS / "model.py", "--config", launch], capture_output=True, text=True)
    assert done.returncode == 2 and f"{launch!r} is not forward|query_gradient|key_gradient" in done.stderr
