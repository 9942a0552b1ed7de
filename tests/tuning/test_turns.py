"""Times by turns, on a clock that a test moves: what slows the machine down falls out of the ratios."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import pytest

from vidsparse.tuning.turns import Turns

DENSE, COSTS = 2.0, (2.5, 0.5, 1.0, 3.0)
Load = Callable[[float], float]  # time -> how many times slower everything is


class Machine:
    """Runs work on a clock of its own."""

    def __init__(self, load: Load) -> None:
        self.now, self.load = 0.0, load

    def run(self, cost: float) -> float:
        seconds = cost * self.load(self.now)
        self.now += seconds
        return seconds


def measured(load: Load, rounds: int = 12) -> Turns:
    machine, turns = Machine(load), Turns()
    for number in range(rounds):
        turns.take(len(COSTS), lambda index: machine.run(COSTS[index]), lambda: machine.run(DENSE), first=number)
    return turns


def one_by_one(load: Load, rounds: int = 12) -> list[float]:
    """All runs of a candidate before those of the next: what load makes of the medians of seconds."""
    machine = Machine(load)
    return [median(machine.run(cost) for _ in range(rounds)) for cost in COSTS]


def busy(now: float) -> float:
    """Another process comes and goes, for a minute each."""
    return 3.0 if now % 120 > 60 else 1.0


def rising(now: float) -> float:
    return 1 + now / 50


@pytest.mark.parametrize("load", [busy, rising])
def test_load_meets_all_alike(load: Load) -> None:
    found = measured(load).seconds()
    assert [seconds / found[2] for seconds in found] == pytest.approx([cost / COSTS[2] for cost in COSTS], rel=0.05)
    apart = one_by_one(load)
    assert abs(apart[3] / apart[2] / (COSTS[3] / COSTS[2]) - 1) > 0.3, "one after the other, the load is in the ratio"


def test_an_idle_machine_gives_the_seconds_themselves() -> None:
    turns = measured(lambda now: 1.0)
    assert turns.seconds() == pytest.approx(COSTS)
    assert len(turns.baseline) == 12 * (len(COSTS) + 1)


def test_each_candidate_begins_in_turn_and_parts_are_joined() -> None:
    order: list[int] = []

    def run(index: int) -> float:
        order.append(index)
        return COSTS[index]

    parts = [Turns(), Turns()]
    for number, turns in enumerate(parts):
        turns.take(3, run, lambda: DENSE, first=2 * number)
    assert order == [0, 1, 2, 2, 0, 1]
    whole = Turns.joined(parts)
    assert whole.ratios == {index: [COSTS[index] / DENSE] * 2 for index in range(3)}
    assert whole.seconds() == pytest.approx(COSTS[:3])
