"""The maps that a pattern chose in a run, of the layers and steps that were asked for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from vidsparse.block_map import BlockMap, HeadGroup, Plan
from vidsparse.grid import VideoGrid, is_whole
from vidsparse.patterns import Context


@dataclass(frozen=True)
class ChosenMap:
    """What a pattern chose for one attention call.

    Attributes:
        transformer: "transformer", "transformer_2" or "transformer_ref".
        layer, step, branch: indices. With classifier-free guidance in two calls, branch 0 is the call with the prompt.
        grid: the tokens of the video; the map's own grid may be the line of the same tokens in raster order.
        plan: a map for all heads, or a tuple of `HeadGroup`; on the CPU. Where several GPUs share a video, it is about
            the heads of this GPU, under their numbers in the layer.
    """

    transformer: str
    layer: int
    step: int
    branch: int
    grid: VideoGrid
    plan: Plan


class ChosenMaps:
    """Keeps the last map of each place that was asked for: transformer, layer, step and branch."""

    def __init__(self) -> None:
        self._layers = self._steps = self._branches = frozenset[int]()
        self._found: dict[tuple[str, int, int, int], ChosenMap] = {}
        self._last: dict[tuple[str, int, int], Plan] = {}

    def ask(self, layers: Iterable[int], steps: Iterable[int], branches: Iterable[int]) -> None:
        """Keep the maps of these layers, steps and branches from now on, and forget those that are here.

        Raises:
            ValueError: something else than whole numbers of at least 0.
        """
        asked = {"layers": tuple(layers), "steps": tuple(steps), "branches": tuple(branches)}
        for name, numbers in asked.items():
            if not all(is_whole(number, 0) for number in numbers):
                raise ValueError(f"{name}={numbers} must be whole numbers of at least 0, such as {name}=(0, 5)")
        self._layers, self._steps, self._branches = map(frozenset, asked.values())
        self.clear()

    def add(self, context: Context, grid: VideoGrid, groups: tuple[HeadGroup, ...]) -> None:
        """Keep the map of a call, if it was asked for. Copying it from a GPU synchronises.

        Args:
            context: of the call. grid: of its video.
            groups: the heads of the call, numbered from 0, each once.
        """
        asked = context.layer in self._layers and context.step in self._steps and context.branch in self._branches
        if not asked:
            return
        plan = _of_layer(groups, context.local_heads)
        of_layer = context.transformer, context.layer, context.branch
        # Reuse on a GPU gives equal maps in other objects: they are kept once.
        plan = self._last[of_layer] if self._last.get(of_layer) == plan else plan
        self._last[of_layer] = plan
        place = context.transformer, context.layer, context.step, context.branch
        self._found[place] = ChosenMap(*place, grid, plan)

    def found(self) -> tuple[ChosenMap, ...]:
        """All maps that are here, by transformer, step, layer and branch."""
        return tuple(sorted(self._found.values(), key=lambda m: (m.transformer, m.step, m.layer, m.branch)))

    def clear(self) -> None:
        self._found.clear()
        self._last.clear()


def _of_layer(groups: tuple[HeadGroup, ...], local_heads: tuple[int, ...] | None) -> Plan:
    """The groups as a plan on the CPU; heads of one GPU of several get their numbers in the layer."""
    if local_heads is None and len(groups) == 1:
        return _on_cpu(groups[0].block_map)
    numbers = local_heads or range(sum(len(group.heads) for group in groups))
    return tuple(
        group._replace(heads=tuple(numbers[head] for head in group.heads), block_map=_on_cpu(group.block_map))
        for group in groups
    )


def _on_cpu(block_map: BlockMap) -> BlockMap:
    if block_map.counts.device.type == "cpu":
        return block_map
    width = max(1, int(block_map.counts.max()))
    counts, indices = block_map.counts.cpu(), block_map.indices[..., :width].cpu()
    return block_map.derived("on the CPU", lambda: replace(block_map, counts=counts, indices=indices))
