"""A quarter of a multiprocessor, cycle by cycle: warps issue a loop's instructions in order, one of them each cycle.

A quarter has one warp of each group of four. Boxes are taken to be there in time: the caches and the memory behind
them are no part of it.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from dataclasses import dataclass

from cycle_model.hopper import BARRIER, MATRIX_LATENCY, MATRIX_START, OPERANDS_READ, cost
from cycle_model.machine_code import Instruction

APART = 137  # cycles from the start of one program to that of the next
MOST = 10_000_000  # cycles, after which warps wait for each other


@dataclass(frozen=True)
class _Step:
    """An instruction, read once."""

    unit: str
    cycles: float
    latency: float
    stall: int
    sets: int | None
    reads: int | None
    waits: tuple[int, ...]
    commits: bool  # products up to here are one group to wait for
    allowed: int | None  # groups of products that may be under way when it issues
    barrier: bool  # waits for all warps of the program
    own_barrier: bool  # waits for the warps of its own group


def _step(instruction: Instruction, faster: str | None) -> _Step:
    needs = cost(instruction)
    waited = re.search(r"gsb0,\s*(0x[0-9a-f]+|\d+)", instruction.operands)
    barrier = instruction.operation.startswith("BAR.SYNC")
    threads = re.search(r",\s*(0x[0-9a-f]+)\s*$", instruction.operands)
    own = barrier and threads is not None and int(threads[1], 0) == 128
    return _Step(
        unit=needs.unit,
        cycles=needs.cycles / (2 if needs.unit == faster else 1),
        latency=needs.latency,
        stall=max(instruction.stall, 1),
        sets=instruction.sets,
        reads=instruction.reads,
        waits=instruction.waits,
        commits=needs.unit == "matrix" and "gsb0" in instruction.operands,
        allowed=int(waited[1], 0) if instruction.operation.startswith("WARPGROUP.DEPBAR") and waited else None,
        barrier=barrier and not own and faster != "barriers",
        own_barrier=barrier and (own or faster == "barriers"),
    )


class _Warp:
    def __init__(self, number: int, program: int) -> None:
        self.program = program
        self.at = self.barriers = self.passes = 0
        self.issued, self.ready = -1.0, float(program * APART + 3 * number)
        self.arrived: float | None = None  # at a barrier of its own group
        self.free = [0.0] * 6  # when each scoreboard is
        self.groups: list[float] = []  # ends of groups of products


class _Quarter:
    def __init__(self, steps: list[_Step], programs: int, groups: int) -> None:
        self.steps, self.group_count = steps, groups
        self.warps = [_Warp(w, w // groups) for w in range(programs * groups)]
        self.free: dict[str, float] = defaultdict(float)  # when each unit takes the next instruction
        # Of a program and the number of a barrier: how many groups are there, and when the last one came.
        self.arrived: dict[tuple[int, int], list[float]] = defaultdict(list)

    def able(self, warp: _Warp, now: float) -> bool:
        """Whether the warp can issue; if it knows until when it cannot, it is not asked before."""
        if warp.ready > now:
            return False
        step = self.steps[warp.at]
        until = max((warp.free[k] for k in step.waits), default=0.0)
        if step.allowed is not None and len(warp.groups) > step.allowed:
            until = max(until, warp.groups[-step.allowed - 1])
        if step.barrier or step.own_barrier:
            here = self.arrived[warp.program, warp.barriers]
            if warp.arrived is None:
                warp.arrived = now
                here.append(now)
            if step.barrier and len(here) < self.group_count:
                return False
            until = max(until, BARRIER + (here[-1] if step.barrier else warp.arrived))
        if step.unit not in ("none", "matrix"):  # products queue up
            until = max(until, self.free[step.unit])
        warp.ready = max(warp.ready, until)
        return until <= now

    def issue(self, warp: _Warp, now: float) -> None:
        step = self.steps[warp.at]
        if step.unit == "matrix":
            self.free["matrix"] = max(self.free["matrix"], now + MATRIX_START) + step.cycles
            if step.commits:
                warp.groups = [*warp.groups[-3:], self.free["matrix"] + MATRIX_LATENCY]
        else:
            self.free[step.unit] = now + step.cycles
        if step.sets is not None:
            warp.free[step.sets] = max(warp.free[step.sets], now + step.latency)
        if step.reads is not None:
            warp.free[step.reads] = max(warp.free[step.reads], now + OPERANDS_READ)
        warp.barriers += step.barrier or step.own_barrier
        warp.arrived = None
        warp.issued, warp.ready = now, now + step.stall
        warp.at = (warp.at + 1) % len(self.steps)
        warp.passes += warp.at == 0


def simulate(
    loop: list[Instruction],
    programs: int,
    groups: int,
    rounds: int = 24,
    faster: str | None = None,
    turns: bool = False,
) -> float:
    """Cycles of one pass of all warps through a loop that runs for long.

    Args:
        loop: its instructions in order, branches not taken but the last.
        programs: that a multiprocessor holds. groups: of four warps, in each.
        rounds: of the loop, of which the first third is not counted.
        faster: a unit that is twice as fast, "issue" for two instructions a cycle, or "barriers" for ones that wait
            for no other group: what the time depends on.
        turns: whether warps that could issue take turns; else the one that issued last goes on, then the youngest, as
            Huerta et al. 2025 (arXiv 2503.20481) found on the generation before.

    Raises:
        ValueError: an instruction that the model does not know.
        RuntimeError: warps that wait for each other for ever.
    """
    quarter = _Quarter([_step(instruction, faster) for instruction in loop], programs, groups)
    warps, last, now, started = quarter.warps, quarter.warps[0], 0.0, None
    width, first = 2 if faster == "issue" else 1, rounds // 3
    while (passes := sum(warp.passes for warp in warps)) < rounds * len(warps):
        if started is None and passes >= first * len(warps):
            started = now, passes
        issued = 0
        while issued < width and (able := [warp for warp in warps if quarter.able(warp, now)]):
            if turns:
                last = min(able, key=lambda warp: warp.issued)
            elif last not in able:
                last = able[-1]
            quarter.issue(last, now)
            issued += 1
        now = now + 1 if issued else min((warp.ready for warp in warps if warp.ready > now), default=math.inf)
        if now > MOST:
            raise RuntimeError("the warps wait for each other: a barrier that not every group of the program reaches")
    assert started is not None
    return (now - started[0]) * len(warps) / (passes - started[1])
