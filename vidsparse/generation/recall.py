"""Recall: the share of dense attention's mass that the tiles of a pattern hold, in each layer and step of a real video.

The video is sampled with dense attention, so that what a pattern drops in one step changes nothing in the next. The
share of a query is the sum of its softmax weights over the keys that the pattern keeps, text included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch

from vidsparse.block_map import BlockMap, Plan, head_groups
from vidsparse.generation.sample import OnStep, sample
from vidsparse.grid import VideoGrid
from vidsparse.patterns import Context, Dense, Pattern
from vidsparse.patterns.schedule import bare

QUERIES = 64  # of each head and call, evenly spaced over the video


@dataclass(frozen=True)
class Recall:
    """What was measured in one transformer.

    Attributes:
        transformer: its name in the pipeline.
        values: float64 [layers, steps], means over heads, queries and calls of a step; NaN where nothing was measured.
        densities: the same, of pairs of tokens that the pattern keeps: what random tiles would hold on average.
    """

    transformer: str
    values: torch.Tensor
    densities: torch.Tensor

    @property
    def mean(self) -> float:
        """Over all layers and steps."""
        return float(self.values.nanmean())

    @property
    def lowest(self) -> tuple[int, int]:
        """The layer and the step with the lowest recall."""
        place = int(self.values.nan_to_num(nan=2.0).argmin())
        return place // self.values.shape[1], place % self.values.shape[1]


def recall(
    pipe: Any,
    pattern: Pattern,
    arguments: Mapping[str, Any],
    *,
    seed: int = 0,
    queries: int = QUERIES,
    on_step: OnStep = lambda done, steps: None,
) -> tuple[Recall, ...]:
    """Sample a dense video up to its latents, and measure what a pattern would keep of its attention.

    Args:
        pipe, arguments, seed, on_step: see `vidsparse.generation.sample.sample`.
        pattern: a schedule around it is left out, so that every layer and step has a value.
        queries: how many of each head are sampled, at most.

    Returns:
        One for each transformer that has run.

    Raises:
        ValueError: fewer than one query, or nothing that could be measured; says why.
    """
    if queries < 1:
        raise ValueError(f"queries={queries} must be at least 1")
    watch = _Watch(bare(pattern), queries)
    done = sample(pipe, watch, {**arguments, "output_type": "latent"}, seed=seed, on_step=on_step)
    if not watch.found:
        reasons = "; ".join(done.report.dense_reasons) or "no attention has run"
        raise ValueError(f"no recall could be measured: {reasons}")
    names = dict.fromkeys(name for name, _, _ in watch.found)
    return tuple(_gathered(name, watch.found) for name in names)


def _gathered(name: str, found: Mapping[tuple[str, int, int], list[tuple[float, float]]]) -> Recall:
    places = {(layer, step): pairs for (transformer, layer, step), pairs in found.items() if transformer == name}
    shape = max(layer for layer, _ in places) + 1, max(step for _, step in places) + 1
    values, densities = (torch.full(shape, torch.nan, dtype=torch.float64) for _ in range(2))
    for place, pairs in places.items():
        values[place], densities[place] = (fmean(column) for column in zip(*pairs, strict=True))
    return Recall(name, values, densities)


@dataclass(frozen=True, eq=False)
class _Watch(Pattern):
    """Runs dense, and measures what another pattern would keep."""

    pattern: Pattern
    queries: int
    found: dict[tuple[str, int, int], list[tuple[float, float]]] = field(default_factory=dict)

    def plan(self, grid: VideoGrid, context: Context | None = None) -> Plan:
        return Dense().plan(grid, context)

    def select(self, query: torch.Tensor, key: torch.Tensor, grid: VideoGrid, context: Context) -> Plan:
        heads = query.shape[2]
        held, density = [], []
        for group in head_groups(self.pattern.select(query, key, grid, context), heads):
            own = list(group.heads)
            shares = kept_mass(query[:, :, own], key[:, :, own], group.block_map, self.queries, context.extra_valid)
            held.append(float(shares.mean()) * len(own) / heads)
            density.append(float(group.block_map.token_density) * len(own) / heads)
        place = context.transformer, context.layer, context.step
        self.found.setdefault(place, []).append((sum(held), sum(density)))
        return Dense().plan(grid, context)


def kept_mass(
    query: torch.Tensor, key: torch.Tensor, block_map: BlockMap, queries: int, extra_valid: torch.Tensor | None = None
) -> torch.Tensor:
    """The share of dense attention's weights that fall on kept keys, computed in float32 from all keys.

    Args:
        query, key: [batch, tokens, heads, head_dim].
        block_map: of these heads, or one for all.
        queries: how many of the video's tokens are taken, evenly spaced; all where there are no more.
        extra_valid: int [batch], how many prefix and suffix tokens, in sequence order, are keys; None: all.

    Returns:
        float32 [batch, heads, queries].
    """
    grid, row, column = block_map.grid, block_map.query_tile_of_token, block_map.key_tile_of_token
    batch, _, heads, head_dim = query.shape
    count = min(queries, grid.video_tokens)
    places = torch.linspace(0, grid.video_tokens - 1, count, dtype=torch.float64).round().long()
    kept = block_map.to_dense().cpu()
    padding = block_map.layout.padding_mask(extra_valid)
    found = torch.empty(batch, heads, count)
    for number in range(batch):
        of_sample = kept[min(number, len(kept) - 1)]
        for head in range(heads):  # head by head: the weights of one are [queries, tokens]
            tiles = of_sample[min(head, len(of_sample) - 1)]
            mask = torch.ones(count, grid.tokens, dtype=torch.bool)
            mask[:, grid.prefix : grid.prefix + grid.video_tokens] = tiles[row[places]][:, column]
            picked = query[number, (grid.prefix + places).to(query.device), head].float()
            scores = picked @ key[number, :, head].float().T * head_dim**-0.5
            if padding is not None:
                scores = scores.masked_fill(padding[number].to(scores.device), float("-inf"))
            found[number, head] = (scores.softmax(dim=-1) * mask.to(scores.device)).sum(dim=-1).cpu()
    return found
