"""What a video will cost in attention, from the settings of its model alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from vidsparse.attention import dense_flops
from vidsparse.block_map import BlockMap, head_groups
from vidsparse.generation.cascade import noise_levels, step_costs
from vidsparse.generation.frames import Geometry, check_map, geometry
from vidsparse.generation.transformers import attention_layers, configured_transformers, without_weights
from vidsparse.grid import VideoGrid
from vidsparse.patterns import Context, Pattern


@dataclass(frozen=True)
class Forecast:
    """What attention of a model will compute for a video: of its transformer with the most tokens, if it has two.

    Attributes:
        grid: of the video's tokens, without text.
        frames: of the video, as the VAE produces them.
        width: of self-attention: heads times head_dim.
        layers: how many layers of self-attention there are.
        sparse: for each step, how many of the layers are sparse.
        skipped: the steps that the pattern skips.
        density, token_density: of the maps of sparse layers: kept / all pairs of tiles, and of tokens, over all heads.
        computed: pairs of tokens that a kernel computes, with kept tiles as a whole, as a share of all pairs.
        costs: see `step_costs`; empty where all steps cost the same.
    """

    grid: VideoGrid
    frames: int
    width: int
    layers: int
    sparse: tuple[int, ...]
    skipped: tuple[int, ...]
    density: float = 1.0
    token_density: float = 1.0
    computed: float = 1.0
    costs: tuple[float, ...] = ()

    @property
    def dense_flops(self) -> float:
        """Floating-point operations of all layers of one call of the transformer, all of them dense."""
        return self.layers * dense_flops(self.grid.tokens, self.width)

    @property
    def dense_steps(self) -> tuple[int, ...]:
        """The steps in which no layer is sparse; those that are skipped are not among them."""
        return tuple(step for step, layers in enumerate(self.sparse) if not layers and step not in self.skipped)

    @property
    def sparse_steps(self) -> int:
        """How many steps have a sparse layer."""
        return sum(layers > 0 for layers in self.sparse)

    @property
    def saved(self) -> float:
        """The share of attention's FLOPs that a run does not compute, of those of a dense run."""
        return 1 - self.share(self.token_density)

    @property
    def bound(self) -> float:
        """How many times faster attention can become in all steps together, with kept tiles computed as a whole."""
        share = self.share(self.computed)
        return 1 / share if share else float("inf")

    def share(self, cost: float) -> float:
        """What attention costs in all steps, as a share of a dense run, if a sparse layer costs `cost` of a dense."""
        costs = self.costs or (1.0,) * len(self.sparse)
        made = (
            0.0 if step in self.skipped else full * (1 - sparse / self.layers * (1 - cost))
            for step, (full, sparse) in enumerate(zip(costs, self.sparse, strict=True))
        )
        return sum(made) / sum(costs)


def forecast(
    model: str, pattern: Pattern, frames: int, height: int, width: int, steps: int, shift: float | None = None
) -> Forecast:
    """What a video will cost. No weights are read.

    Args:
        model: see `configured_transformers`.
        pattern: in its schedule; for noise levels see `noise_levels`. For a pattern that chooses by content, densities
            are those of `plan`.
        frames, height, width: of the video; frames that the VAE does not produce count as the nearest that it does.
        steps: of the denoising.
        shift: of the flow; None: that of the model's scheduler.

    Raises:
        ValueError: a video that is smaller than a token, or a map larger than memory.
        NotImplementedError: no adapter serves the transformer.
        OSError: the settings cannot be read.
    """
    size, levels = (frames, height, width), noise_levels(model, steps, shift)
    found = forecast_of(geometry(model), attention_layers(model), pattern, size, steps, levels)
    return replace(found, costs=step_costs(model, steps, shift))


def forecast_of(
    known: Geometry,
    layers: int,
    pattern: Pattern,
    size: tuple[int, int, int],
    steps: int,
    levels: Sequence[float] | None = None,
) -> Forecast:
    """What a video will cost a model with this geometry and so many layers of self-attention.

    Args:
        size: frames, height and width of the video.
        levels: of noise, by step; None: it falls evenly. Others: see `forecast`.

    Raises:
        ValueError: see `forecast`.
    """
    frames, height, width = size
    grid, heads = known.grid(frames, height, width), known.heads
    levels = levels or [1 - step / steps for step in range(steps)]
    sparse, skipped = [], []
    asking: Counter[Pattern] = Counter()  # calls of each pattern inside the schedule
    contexts: dict[Pattern, Context] = {}
    for step in range(steps):
        places = [
            Context(layer=layer, layers=layers, step=step, steps=steps, sigma=levels[step], heads=heads, grid=grid)
            for layer in range(layers)
        ]
        if pattern.skips(places[0]):
            skipped.append(step)
            sparse.append(0)
        else:
            called = [place for place in places if not pattern.is_dense(place)]
            sparse.append(len(called))
            for place in called:
                asking[inner := pattern.at(place)] += 1
                contexts.setdefault(inner, place)
    found = Forecast(grid, known.frames(frames)[0], heads * known.head_dim, layers, tuple(sparse), tuple(skipped))
    if not any(sparse):
        return found
    check_map(grid, pattern)
    shares = [
        (group.block_map, len(group.heads) / heads * calls / asking.total())
        for inner, calls in asking.items()
        for group in head_groups(inner.plan(grid, contexts[inner]), heads)
    ]
    return Forecast(
        *(found.grid, found.frames, found.width, found.layers, found.sparse, found.skipped),
        density=sum(share * block_map.density for block_map, share in shares),
        token_density=sum(share * block_map.token_density for block_map, share in shares),
        computed=sum(share / bound(block_map) for block_map, share in shares),
    )


def bound(block_map: BlockMap) -> float:
    """How many times less a kernel computes than dense attention, when it computes kept tiles as a whole."""
    query, key = (tile[0] * tile[1] * tile[2] for tile in (block_map.query_tile, block_map.key_tile))
    rows = block_map.counts.double().sum(dim=-1).mean()
    return float(block_map.grid.tokens**2 / (rows * query * key))


def weight_bytes(model: str, dtype: torch.dtype) -> dict[str, int]:
    """The bytes of each transformer's weights in a dtype, from settings alone.

    Raises: see `configured_transformers`.
    """
    return {
        name: sum(weight.numel() for weight in without_weights(cls, settings).parameters()) * dtype.itemsize
        for name, (cls, settings) in configured_transformers(model).items()
    }
