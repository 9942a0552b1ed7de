"""A quarter of a multiprocessor, cycle by cycle: warps issue a loop's instructions in order, one of them each cycle.

A quarter has one warp of each group of four. Boxes are taken to be there in time: the caches and the memory behind
them are no part of it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass

from cycle_model.hopper import BARRIER, MATRIX_LATENCY, MATRIX_START, OPERANDS_READ, cost
from cycle_model.machine_code import Instruction

APART = 137  # cycles from the start of one program to that of the next
MOST = 10_000_000  # cycles, after which warps wait for each other


@dataclass(frozen=True)
class Simulated:
    """Attributes:
    cycles: of one pass of all warps through the loop. busy: the share of them that each unit works.
    """

    cycles: float
    busy: dict[str, float]


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
    product: bool
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
        product=needs.unit == "matrix",
        commits=needs.unit == "matrix" and "gsb0" in instruction.operands,
        allowed=int(waited[1], 0) if instruction.operation.startswith("WARPGROUP.DEPBAR") and waited else None,
        barrier=barrier and not own and faster != "barriers",
        own_barrier=barrier and (own or faster == "barriers"),
    )


class _Warp:
    def __init__(self, program: int, start: int) -> None:
        self.program = program
        self.at = self.rounds = self.barriers = 0
        self.ready = float(start)
        self.arrived: float | None = None  # at a barrier of its own group
        self.free = [0.0] * 6  # when each scoreboard is
        self.products_end = 0.0
        self.groups: list[float] = []  # ends of groups of products
        self.ends: list[float] = []  # of each round


def simulate(
    loop: list[Instruction], programs: int, groups: int, rounds: int = 14, faster: str | None = None
) -> Simulated:
    """Let `programs` of `groups` groups of four warps run a loop, until it takes the same time each round.

    Args:
        loop: its instructions in order, branches not taken but the last.
        programs: that a multiprocessor holds. groups: of four warps, in each.
        rounds: of the loop; the first third is not counted.
        faster: a unit that is twice as fast, "issue" for two instructions a cycle, or "barriers" for ones that wait
            for no other group: what the time depends on.

    Raises:
        ValueError: an instruction that the model does not know.
        RuntimeError: warps that wait for each other for ever.
    """
    steps = [_step(instruction, faster) for instruction in loop]
    warps = [_Warp(w // groups, w // groups * APART + 3 * w) for w in range(programs * groups)]
    free: dict[str, float] = defaultdict(float)  # when each unit takes the next instruction
    busy: dict[str, float] = defaultdict(float)
    arrived: dict[tuple[int, int], dict[int, float]] = defaultdict(dict)  # program, number of barrier -> warp -> cycle
    width = 2 if faster == "issue" else 1
    now, matrix_free, last = 0.0, 0.0, 0
    while min(warp.rounds for warp in warps) < rounds:
        issued = 0
        while issued < width:
            able = []
            for w, warp in enumerate(warps):
                if warp.ready > now or warp.rounds >= rounds + 2:
                    continue
                step = steps[warp.at]
                until = max((warp.free[k] for k in step.waits), default=0.0)
                if step.allowed is not None and len(warp.groups) > step.allowed:
                    until = max(until, warp.groups[-step.allowed - 1])
                if step.barrier:
                    here = arrived[warp.program, warp.barriers]
                    here.setdefault(w, now)
                    if len(here) < groups:
                        continue
                    until = max(until, max(here.values()) + BARRIER)
                elif step.own_barrier:
                    warp.arrived = now if warp.arrived is None else warp.arrived
                    until = max(until, warp.arrived + BARRIER)
                if step.unit not in ("none", "matrix"):
                    until = max(until, free[step.unit])
                if until > now:
                    warp.ready = until
                else:
                    able.append(w)
            if not able:
                break
            # The warp that issued last goes on, else the one that waits longest.
            last = last if last in able else min(able, key=lambda w: warps[w].ready)
            warp, step = warps[last], steps[warps[last].at]
            if step.product:
                matrix_free = max(matrix_free, now + MATRIX_START) + step.cycles
                warp.products_end = matrix_free + MATRIX_LATENCY
                if step.commits:
                    warp.groups = [*warp.groups[-3:], warp.products_end]
            free[step.unit] = now + step.cycles
            busy[step.unit] += step.cycles
            if step.sets is not None:
                warp.free[step.sets] = max(warp.free[step.sets], now + step.latency)
            if step.reads is not None:
                warp.free[step.reads] = max(warp.free[step.reads], now + OPERANDS_READ)
            warp.barriers += step.barrier
            warp.arrived = None
            warp.ready = now + step.stall
            warp.at += 1
            if warp.at == len(steps):
                warp.at, warp.rounds = 0, warp.rounds + 1
                warp.ends.append(now)
            issued += 1
        if issued:
            now += 1
        else:
            now = min((w.ready for w in warps if w.ready > now and w.rounds < rounds + 2), default=float("inf"))
        if now > MOST:
            raise RuntimeError("the warps wait for each other: a barrier that not every group of the program reaches")
    first = rounds // 3
    took = sum((w.ends[rounds - 1] - w.ends[first]) / (rounds - 1 - first) for w in warps) / len(warps)
    passes = sum(w.rounds + w.at / len(steps) for w in warps) / len(warps)
    return Simulated(took, {unit: total / passes / took for unit, total in busy.items() if unit != "none"})
