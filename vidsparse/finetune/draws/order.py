"""The order of the videos: each epoch has every one once."""

from __future__ import annotations

import random


class Epochs:
    """Which videos a step has. An order depends on the seed alone, so that any step can be asked for.

    Args:
        number: of videos; one that counts several times has several numbers.
        seed: of the orders.
        total: videos of a step, over all processes.
    """

    def __init__(self, number: int, seed: int, total: int):
        self._number = number
        self._seed, self._total = seed, total
        self._orders: dict[int, list[int]] = {}  # of the last two epochs: a step may have videos of both

    def chosen(self, step: int) -> list[int]:
        """The indices of a step's videos: none twice where there are enough."""
        length = self._number
        places = range(step * self._total, (step + 1) * self._total)
        return [self._order_of(place // length)[place % length] for place in places]

    def _order_of(self, epoch: int) -> list[int]:
        if epoch not in self._orders:
            # Each order looks at the end of the one before, back to the first.
            known = [other for other in self._orders if other < epoch]
            if not known:
                self._orders = {0: self._next(0, [])}
            for other in range(max(self._orders) + 1, epoch + 1):
                before = self._orders[other - 1]
                self._orders = {other - 1: before, other: self._next(other, before)}
        return self._orders[epoch]

    def _next(self, epoch: int, before: list[int]) -> list[int]:
        order = list(range(self._number))
        random.Random(f"{self._seed}-epoch-{epoch}").shuffle(order)
        begun = epoch * len(order) % self._total  # videos of the step that the epoch before has begun
        if not begun or begun > len(before):
            return order
        last = set(before[-begun:])
        first = [video for video in order if video not in last][: self._total - begun]
        taken = set(first)
        return first + [video for video in order if video not in taken]
