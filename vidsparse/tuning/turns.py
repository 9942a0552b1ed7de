"""Times candidates by turns with a baseline, so that what slows the machine down meets both alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median


@dataclass
class Turns:
    """Times of candidates beside a baseline.

    Attributes:
        baseline: its seconds, each time that it ran.
        ratios: candidate -> its seconds over those of the baseline, one number for each time that it ran.
    """

    baseline: list[float] = field(default_factory=list)
    ratios: dict[int, list[float]] = field(default_factory=dict)

    def take(self, candidates: int, run: Callable[[int], float], baseline: Callable[[], float], first: int = 0) -> None:
        """Run each candidate once, and the baseline before the first and after each.

        A ratio is over the mean of the two runs of the baseline around it.

        Args:
            candidates: how many. run: runs one, by its index. baseline: runs it; both return seconds.
            first: index of the candidate that begins, so that from turn to turn each has other neighbours.
        """
        before = baseline()
        self.baseline.append(before)
        for turn in range(candidates):
            index = (first + turn) % candidates
            seconds, after = run(index), baseline()
            self.baseline.append(after)
            self.ratios.setdefault(index, []).append(2 * seconds / (before + after))
            before = after

    @staticmethod
    def joined(several: list[Turns]) -> Turns:
        """All of them as one."""
        whole = Turns()
        for turns in several:
            whole.baseline += turns.baseline
            for index, ratios in turns.ratios.items():
                whole.ratios.setdefault(index, []).extend(ratios)
        return whole

    def seconds(self) -> tuple[float, ...]:
        """Of each candidate: the median of its ratios, times the median of the baseline."""
        usual = median(self.baseline)
        return tuple(usual * median(self.ratios[index]) for index in sorted(self.ratios))
