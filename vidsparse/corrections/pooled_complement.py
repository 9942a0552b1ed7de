"""Pooled complement: every query also attends to the mean keys and mean values of the tiles that were dropped."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from vidsparse.corrections.base import Correction, SparseCall
from vidsparse.corrections.columns import Columns, attend, kept_boxes
from vidsparse.grid import Tile
from vidsparse.patterns.fields import check_flag, check_sides, check_whole
from vidsparse_kernels.layout import tile_of_token, tile_sizes
from vidsparse_kernels.selection.pooling import tile_means


@dataclass(frozen=True)
class PooledComplement(Correction):
    """Dropped tiles contribute through their means, each weighted by its number of tokens.

    A query q sees a dropped tile of n tokens as one key: logit q . mean(k) / sqrt(d) + log n, value mean(v). This
    attention over the dropped tiles and the exact one over the kept keys are merged by their lse, so that rho and
    the second term of `corrections.base` come from one softmax per query. Without the gate it is exact if the keys of
    each dropped tile are equal, whatever the values.

    Means mislead where attention picks single tokens of a tile, and the kept tiles show where: the gate attends to
    *their* means as well, and compares with the exact output. The correlation of the two, over the tokens of a query
    tile and relative to the video's mean value, is the fraction of the change that is applied.

    It replaces the two rules of `Rectified` (arXiv 2511.19835): text is in the exact part, and every query has a
    softmax. Measured in `benchmarks/corrections.py`: with the gate no layer got worse than without correction, for
    typically a tenth of the mean gain; smaller boxes help most; the variance term tripled the error of some layers.

    Gradients flow through everything but the gate. Without gradients memory is bounded: queries are processed in turn.

    Attributes:
        gate: apply only the fraction of the change that the kept tiles support.
        box: the boxes whose means are taken: sides (frames, height, width) that divide the tile, or a number of tokens:
            the tile is halved along its longest sides until it has at most that many. By default the tile. The products
            cost 1 / (tokens of a box) of those of dense attention, and half as much again with the gate.
        variance: add half the variance of a tile's logits, from the variance of its keys in each channel: the second
            term of the log of the mean exponential; the mean key gives the first.
    """

    gate: bool = True
    box: Tile | int | None = None
    variance: bool = False

    def __post_init__(self) -> None:
        check_flag(self, "gate", "variance")
        if isinstance(self.box, int):
            check_whole(self, "box", least=1)
        else:
            check_sides(self, "box", optional=True)

    def pool_tile(self, tile: Tile) -> Tile:
        """The sides of the boxes in a tile.

        Raises:
            ValueError: the box does not divide the tile.
        """
        if self.box is None:
            return tile
        if isinstance(self.box, int):
            return _halved(tile, self.box)
        if any(side % part for side, part in zip(tile, self.box, strict=True)):
            raise ValueError(f"box={self.box} must divide the pattern's key tile {tile} along every axis")
        return self.box

    def correct(self, call: SparseCall) -> torch.Tensor:
        grid, out = call.block_map.grid, call.out
        columns = self._columns(call)
        owner = tile_of_token(grid.view, call.block_map.query_tile).to(out.device)
        video = slice(grid.prefix, grid.prefix + grid.video_tokens)
        centre = call.value.detach()[:, video].mean(dim=1, dtype=torch.float32)[:, :, None]
        corrected, agreements = out.clone(), []
        for rows, tiles in columns.turns(grid, call.block_map.query_tile):
            logits = columns.logits(call.query[:, rows])
            corrected[:, rows] = columns.with_dropped(call, rows, tiles, logits)
            if self.gate:
                with torch.no_grad():
                    pooled, _ = attend(logits, columns.kept[:, :, tiles], columns.values)
                    agreements.append(_products(out[:, rows].transpose(1, 2) - centre, pooled - centre))
        if not self.gate:
            return corrected
        share = _correlation(torch.cat(agreements, dim=2), owner, columns.kept.shape[2])
        # Without a kept key there is nothing to compare with: apply the whole change.
        share = share.masked_fill(call.lse[:, :, video].isneginf(), 1.0).transpose(1, 2)[..., None]
        corrected[:, video] = (out[:, video] + share * (corrected[:, video] - out[:, video])).to(out.dtype)
        return corrected

    def _columns(self, call: SparseCall) -> Columns:
        block_map, key, value = call.block_map, call.key, call.value
        grid, tile = block_map.grid, self.pool_tile(block_map.key_tile)
        sizes = tile_sizes(grid.view, tile, key.device)
        kept = kept_boxes(block_map, tile, key.device)
        keys, values = (tile_means(x, grid.view, tile, grid.prefix) for x in (key, value))
        spread = None
        if self.variance:
            spread = tile_means(key.float() ** 2, grid.view, tile, grid.prefix) - keys**2
        bias = sizes.log()[None, None, None]
        if self.gate and (extra := grid.prefix + grid.suffix):
            # The kept side includes the text, which is exact: each text token is one box.
            text = block_map.layout.key.extra_tokens.to(key.device)
            keys, values = (
                torch.cat((means, x[:, text].transpose(1, 2).float()), dim=2)
                for means, x in ((keys, key), (values, value))
            )
            extra_bias = call.extra_bias
            bias = torch.cat((bias.expand(len(extra_bias), -1, -1, -1), extra_bias), dim=-1)
            kept = torch.nn.functional.pad(kept, (0, extra), value=True)
            spread = None if spread is None else torch.nn.functional.pad(spread, (0, 0, 0, extra))
        return Columns(keys, values, bias, spread, kept)


def _halved(tile: Tile, tokens: int) -> Tile:
    """Halve the longest even side of a tile until it has at most `tokens` tokens, or no even side."""
    sides = list(tile)
    while math.prod(sides) > tokens:
        even = [axis for axis, side in enumerate(sides) if side % 2 == 0]
        if not even:
            break
        sides[max(even, key=lambda axis: (sides[axis], axis))] //= 2
    return (sides[0], sides[1], sides[2])


def _products(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a . b, a . a and b . b along the channels: [B, H, rows, 3]."""
    return torch.stack(((a * b).sum(dim=-1), (a * a).sum(dim=-1), (b * b).sum(dim=-1)), dim=-1)


def _correlation(products: torch.Tensor, owner: torch.Tensor, tiles: int) -> torch.Tensor:
    """The correlation in [0, 1] of each token's tile: [B, H, tokens]."""
    sums = products.new_zeros(*products.shape[:2], tiles, 3).index_add_(2, owner, products)
    both, first, second = sums.unbind(dim=-1)
    norm = (first.sqrt() * second.sqrt()).clamp(min=torch.finfo(products.dtype).tiny)
    return (both / norm).clamp(0, 1)[:, :, owner]
