"""Proxy tokens: every query also attends to one averaged or learned token of each box that was dropped."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from vidsparse.corrections.base import Correction, SparseCall
from vidsparse.corrections.columns import Columns, kept_boxes
from vidsparse.grid import Tile
from vidsparse.patterns.fields import check_flag, check_sides
from vidsparse_kernels.layout import tile_count, tile_of_token, tile_sizes
from vidsparse_kernels.selection.pooling import tile_means


@dataclass(frozen=True)
class ProxyTokens(Correction):
    """One proxy stands for each box of a dropped tile, and all queries attend to the proxies: far tokens in brief.

    A box of n tokens becomes one key and one value. A query q gives it, in one softmax with the tokens that it keeps,

        logit q . k / sqrt(head_dim) + log n + m,    k = sum_x softmax(a)_x k_x,    value sum_x softmax(b)_x v_x

    with numbers a and b for each place x of a box, and m, of each layer and head. They are zero where nothing is
    learned: then the proxy is the mean, and this is `PooledComplement(gate=False, box=box)`. Boxes are cut at the
    borders of the video and of tiles, and the softmax is over the places that are left.

    With `learned=True`, `vidsparse finetune` trains a, b and m together with the LoRA, whose file holds them; wherever
    `load_lora` puts that file, they are there. Wherever the keys of a box differ, the logit of their mean is
    below that of the tokens together (Jensen's inequality); a positive m makes up for it.

        settings = Settings(ShiftedWindows(), ProxyTokens(learned=True))    # of vidsparse.finetune

    Paper: Wang et al., Qihoo-T2X (PT-DiT), arXiv 2409.04005. Code: `PTDiTDiffuser` of Ascend/MindSpeed-MM, which later
    versions of it no longer have; its boxes are (1, 4, 4) by default. There every block has a mean token of each box,
    lets these attend to each other, lets all tokens attend to them, and then attends within windows and within shifted
    windows. With the pattern `ShiftedWindows` this is the same structure in a model that was trained with dense
    attention. Differences from the paper:

    * The mean is that of keys and of values. But for norms and rotary positions, these are those of the mean token.
    * Near tokens and proxies share one softmax, without proxies of what is kept. So no layer is added: in the paper,
      what tokens read from proxies goes through a projection of its own, which begins at zero.
    * Proxies do not attend to each other first.
    * A layer has one offset of windows instead of two.
    * Learned weights are ours.

    Gradients flow through everything. Without gradients queries are processed in turn, so that only some rows of logits
    exist at once. Learned proxies also take copies of keys and values in float32 while they are summed up.

    Attributes:
        box: sides (frames, height, width) in tokens; each divides the side of the pattern's tile or is a multiple of
            it. The products cost 1 / (tokens of a box, as tiles cut it) of those of dense attention: a thin tile makes
            them dearer, so give the pattern one that is as high and wide as the box. Products are not all of the time,
            and small boxes can take more of it than dense attention. Measured on one core in float32, 9,216 tokens, 4
            heads of 64: dense 1.26 s; the sparse part alone 0.09 s; the correction with boxes (1, 4, 4) 0.48 s, learned
            0.51 s, and with (1, 2, 2) 1.99 s.
        learned: use what a layer has learned, looked up at each call. One that has learned nothing takes means, as in
            a pipeline of two transformers.
    """

    box: Tile = (1, 4, 4)
    learned: bool = False

    def __post_init__(self) -> None:
        check_sides(self, "box")
        check_flag(self, "learned")

    def pool_tile(self, tile: Tile) -> Tile:
        """The sides of the boxes as a tile cuts them.

        Raises:
            ValueError: a side neither divides that of the tile nor is a multiple of it.
        """
        if any(max(sides) % min(sides) for sides in zip(tile, self.box, strict=True)):
            raise ValueError(
                f"box={self.box} does not fit the pattern's key tile {tile}: along each axis one must divide the "
                f"other, as with box={tuple(map(math.gcd, tile, self.box))}"
            )
        frames, height, width = map(min, tile, self.box)
        return frames, height, width

    def correct(self, call: SparseCall) -> torch.Tensor:
        columns, corrected = self._columns(call), call.out.clone()
        for rows, tiles in columns.turns(call.block_map.grid, call.block_map.query_tile):
            logits = columns.logits(call.query[:, rows])
            corrected[:, rows] = columns.with_dropped(call, rows, tiles, logits)
        return corrected

    def _columns(self, call: SparseCall) -> Columns:
        block_map, grid, device = call.block_map, call.block_map.grid, call.out.device
        part = self.pool_tile(block_map.key_tile)
        kept = kept_boxes(block_map, part, device)
        sizes = tile_sizes(grid.view, part, device)
        bias, keys, values = sizes.log()[None, None, None], call.key, call.value
        start = grid.prefix
        if self.learned and call.proxies is not None:
            known = call.proxies.to(device)
            video = slice(grid.prefix, grid.prefix + grid.video_tokens)
            keys, values = (
                x[:, video].float() * _shares(logits, grid.view, part, self.box)[..., None]
                for x, logits in ((keys, known.key), (values, known.value))
            )
            bias, start = bias + known.mass[None, :, None], 0
        keys, values = (tile_means(x, grid.view, part, start) for x in (keys, values))
        return Columns(keys, values, bias, None, kept)


def averaged(correction: Correction | None) -> Correction | None:
    """A correction with means in the place of learned proxies; another one as it is."""
    return replace(correction, learned=False) if isinstance(correction, ProxyTokens) else correction


def _shares(logits: torch.Tensor, view: Tile, part: Tile, box: Tile) -> torch.Tensor:
    """The weight of each video token in its part of a box, times the tokens there: [tokens, heads]. Zeros give ones.

    Args:
        logits: [heads, tokens of a box].
        part: sides of the boxes as tiles cut them.
    """
    owner, place, absent = _places(view, part, box, logits.device)
    shares = logits[:, None].masked_fill(absent, float("-inf")).softmax(dim=-1)
    return (shares * (~absent).sum(dim=-1, keepdim=True))[:, owner, place].T


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # a training may use them later
def _places(view: Tile, part: Tile, box: Tile, device: torch.device) -> tuple[torch.Tensor, ...]:
    """The part and the place of each video token, int64 [tokens], and the places that a part lacks [parts, V]."""
    axes = torch.meshgrid(*(torch.arange(size) % side for size, side in zip(view, box, strict=True)), indexing="ij")
    place = ((axes[0] * box[1] + axes[1]) * box[2] + axes[2]).flatten()
    owner = tile_of_token(view, part)
    absent = torch.ones(tile_count(view, part), math.prod(box), dtype=torch.bool)
    absent[owner, place] = False
    return owner.to(device), place.to(device), absent.to(device)
