"""Reshaped attention: what dense attention adds is measured at some steps and reused in the steps after them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch

from vidsparse.block_map import BlockMap
from vidsparse.corrections.base import Correction, SparseCall
from vidsparse.grid import Tile, VideoGrid
from vidsparse.patterns.fields import check_choice, check_number, check_whole
from vidsparse_kernels.layout import tile_of_token
from vidsparse_kernels.selection.pooling import tile_means

Residual = Literal["none", "tile", "full"]


@dataclass(frozen=True)
class Reshaped(Correction):
    """Takes rho and the second term of `corrections.base` from an earlier step, which ran dense.

    At a refresh step the output is the dense one, and two things are stored for each query: the fraction
    rho = exp(lse - lse_dense) of the softmax that the kept keys have, and the residual R = dense - rho * out. k steps
    later the output is min(rho + drift * k, 1) * out + R. Refresh steps are the first sparse step of a layer and
    branch, every `refresh_every`-th step after it, and any step at which the map or the shapes have changed. A pattern
    that selects by content has to keep its map and its groups of heads in between, as within `Reuse`; otherwise every
    step is dense.

    Inference only: with gradient checkpointing a recomputed pass would read state written by the first pass.

    Paper: Re-ttention, arXiv 2505.22918. Code: cccrrrccc/Re-ttention at bbec1f5. Differences: any pattern that does not
    change instead of a window along the raster order; the residual is that of the attention itself, not of what follows
    its output projection; rho never exceeds 1; the residual can be compressed, since in full it is as large as the
    output of every layer and branch (`cache_bytes`): 63 GB for Wan 2.1 14B at 720p, 81 frames, with guidance.

    Attributes:
        residual: "full" stores R; "tile" stores its mean over the video tokens of each query tile (text needs none);
            "none" stores nothing, and the output is only scaled. On the shipped model "full" helped nearly everywhere,
            "tile" did not, and "none" was far worse than no correction (`benchmarks/corrections.py`).
        drift: added to rho at every step.
        refresh_every: steps from one refresh to the next. Steps that the pattern's schedule runs dense count, but do
            not refresh.

    Raises:
        ValueError: an unknown residual, a negative drift, or `refresh_every` below 1.
    """

    residual: Residual = "full"
    drift: float = 0.04
    refresh_every: int = 5

    def __post_init__(self) -> None:
        check_choice(self, "residual", get_args(Residual))
        check_number(self, "drift")
        check_whole(self, "refresh_every", least=1)

    def correct(self, call: SparseCall) -> torch.Tensor:
        cache: _Cache | None = call.context.memory.get("reshaped")
        if cache is None or self._is_stale(cache, call):
            exact, lse = call.exact()
            call.context.memory["reshaped"] = self._measure(call, exact.detach(), lse.detach())
            return exact
        grid = call.block_map.grid
        rho = (cache.rho + self.drift * (call.context.step - cache.step)).clamp(max=1.0)
        out = _per_query(rho) * call.out
        if cache.residual is not None and self.residual == "full":
            out = out + cache.residual
        elif cache.residual is not None:
            owner = tile_of_token(grid.view, call.block_map.query_tile).to(out.device)
            video = cache.residual.transpose(1, 2)[:, owner]
            out = out + torch.nn.functional.pad(video, (0, 0, 0, 0, grid.prefix, grid.suffix))
        return out.to(call.out.dtype)

    def cache_bytes(
        self, grid: VideoGrid, tile: Tile, heads: int, head_dim: int, *, batch: int = 1, itemsize: int = 2
    ) -> int:
        """Bytes of the cache of one layer and branch, for query tiles `tile` and outputs of `itemsize` bytes."""
        rows = batch * heads
        tiles = torch.Size(grid.tiles(tile)).numel()
        residual = {"none": 0, "tile": 4 * rows * tiles * head_dim, "full": itemsize * rows * grid.tokens * head_dim}
        return 4 * rows * grid.tokens + residual[self.residual]

    def _is_stale(self, cache: _Cache, call: SparseCall) -> bool:
        age = call.context.step - cache.step
        if not 0 <= age < self.refresh_every:
            return True
        here = call.lse.shape, call.lse.device
        return here != (cache.rho.shape, cache.rho.device) or cache.block_map != call.block_map

    def _measure(self, call: SparseCall, exact: torch.Tensor, lse: torch.Tensor) -> _Cache:
        block_map = call.block_map
        rho = (call.lse.detach() - lse).exp().clamp(max=1.0)
        residual = None
        if self.residual != "none":
            residual = exact - _per_query(rho) * call.out.detach()
            if self.residual == "tile":
                residual = tile_means(residual, block_map.view, block_map.query_tile, block_map.grid.prefix)
            else:
                residual = residual.to(call.out.dtype)
        return _Cache(call.context.step, block_map, rho, residual)


class _Cache(NamedTuple):
    """What a refresh step stored."""

    step: int
    block_map: BlockMap
    rho: torch.Tensor  # float32 [B, H, tokens]
    residual: torch.Tensor | None  # like the output, or for "tile" [B, H, query tiles, head_dim]

    @property
    def nbytes(self) -> int:
        return self.rho.nbytes + (0 if self.residual is None else self.residual.nbytes)


def _per_query(x: torch.Tensor) -> torch.Tensor:
    """Reshape [B, H, tokens] to a factor of [B, tokens, H, head_dim]."""
    return x.transpose(1, 2)[..., None]
