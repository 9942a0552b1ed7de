"""The launch of attention kernels: geometry, chip, and descriptors for the tensor memory accelerator (TMA)."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from vidsparse_kernels.gpu.configs import Config, GluonConfig, Kernel, choose, choose_gluon
from vidsparse_kernels.gpu.device import capability, reads_boxes
from vidsparse_kernels.gpu.primitives import HEADS, SIDE, strides
from vidsparse_kernels.layout import TileLayout, Tiling, Triple


def step_box(tile: Triple, volume: int) -> Triple:
    """The box of at most `volume` tokens that a step reads: the tile, halved along its first axes."""
    sides = list(tile)
    while math.prod(sides) > volume:
        axis = next(i for i, side in enumerate(sides) if side > 1)
        sides[axis] //= 2
    return sides[0], sides[1], sides[2]


def heads_first(x: torch.Tensor) -> bool:
    """Whether x [B, tokens, H, head_dim] lies in memory as [B, H, tokens, head_dim], one video per head."""
    batch, _, head, _ = x.stride()
    apart = head >= x.shape[1] * x.shape[3] and x.shape[2] > 1
    return apart and (x.shape[0] == 1 or batch == x.shape[2] * head)


def has_boxes(x: torch.Tensor, of: Tiling) -> bool:
    """Whether the accelerator can read x [B, tokens, H, head_dim]: alignment and strides suit it."""
    batch, token, head, _ = (stride * x.element_size() for stride in x.stride())
    steps = batch, token, head
    side_by_side = 0 < (x.shape[2] - 1) * x.stride(2) + x.shape[3] <= x.stride(1)
    aligned = (x.data_ptr() + of.prefix * token) % 16 == 0 and all(n > 0 and n % 16 == 0 for n in steps)
    return aligned and (side_by_side or heads_first(x))


def readable(x: torch.Tensor, of: Tiling) -> torch.Tensor:
    """Return x, or a contiguous copy if the kernels cannot read it in place.

    The copy is cheap beside attention, and leaves one code path per chip.
    """
    if x.stride(-1) == 1 and (has_boxes(x, of) or not reads_boxes(x.device)):
        return x
    return x.clone(memory_format=torch.contiguous_format)


class Boxes(NamedTuple):
    """Descriptors of one tensor's videos, for the low and the high part of a head's channels; None without them.

    `heads_first` is `heads_first(x)`, for `primitives.box_start`.
    """

    low: TensorDescriptor | None
    high: TensorDescriptor | None
    heads_first: bool


class Launch:
    """The geometry of one call, and the arguments that all its kernels share.

    Attributes:
        query, key: the tokens of the queries, and of the keys.
        groups: how many heads of the map the next sample and the next head are away: 0 where they share one.
        valid: int32 [batch], how many extra tokens of the keys are keys.
    """

    def __init__(
        self, query: torch.Tensor, map_shape: torch.Size, extra_valid: torch.Tensor | None, layout: TileLayout
    ):
        self.query, self.key = layout.query, layout.key
        self.shape, self.dtype, self.device = query.shape, query.dtype, query.device
        samples, heads = map_shape[:2]
        self.groups = (heads if samples > 1 else 0, 1 if heads > 1 else 0)
        self.valid = extra_valid
        if extra_valid is None:
            self.valid = torch.full(self.shape[:1], self.key.extra, dtype=torch.int32, device=self.device)

    @property
    def head(self) -> tuple[int, int]:
        """The low and the high part in which kernels read a head's channels."""
        return HEADS[self.shape[3]]

    @property
    def chip(self) -> int:
        """The device's `capability`."""
        return capability(self.device)

    @property
    def programs(self) -> int:
        """batch * heads."""
        return self.shape[0] * self.shape[2]

    @property
    def query_blocks(self) -> int:
        """Programs that hold queries of one head: blocks of extra queries, and query tiles."""
        return self.query.extra_blocks + self.query.tiles

    def boxes(self, box: Triple, x: torch.Tensor, of: Tiling) -> Boxes:
        """Make descriptors of a `readable` tensor with the tokens `of`, as [videos, frames, height, width, channels].

        Videos are a separate axis, so that a box that leaves one video never reads the next.
        """
        if not reads_boxes(self.device):
            return Boxes(None, None, False)
        batch, token, head = strides(x)
        _, height, width = of.view
        samples, _, heads, head_dim = x.shape
        apart = heads_first(x)
        videos, channels = (samples * heads, head_dim) if apart else (samples, (heads - 1) * head + head_dim)
        shape = [videos, *of.view, channels]
        steps = [head if apart else batch, height * width * token, width * token, token, 1]
        video = x[:, of.prefix :]
        low, high = (TensorDescriptor(video, shape, steps, [1, *box, part]) if part else None for part in self.head)
        return Boxes(low, high, apart)

    def config(self, kernel: Kernel, held: Tiling) -> Config:
        """The configuration of `kernel` for programs that hold one tile of these tokens.

        Raises:
            NotImplementedError: such a program does not fit the chip.
        """
        config = choose(self.chip, kernel, self.dtype.itemsize, self.shape[3], held.volume)
        if config is None:
            raise NotImplementedError(f"{kernel} with {self.dtype} and a tile {held.tile} does not fit this chip")
        return config

    def gluon_config(self) -> GluonConfig | None:
        """The configuration of the forward kernel in Gluon; None where the one in Triton is launched."""
        return choose_gluon(self.chip, self.dtype.itemsize, self.shape[3], self.query.volume)

    def grid(self, blocks: int) -> tuple[int, int]:
        """The grid of a launch: `blocks` programs for each head of each sample."""
        return blocks, self.programs

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments that all kernels share."""
        map_batch, map_head = self.groups
        return {
            "heads": self.shape[2],
            "map_batch": map_batch,
            "map_head": map_head,
            "HEAD": self.head,
            "enable_fp_fusion": True,
        }

    def sizes(self, *sides: Literal["query", "key"]) -> dict[str, int]:
        """The arguments that say where the tokens of these sides of the call are."""
        return {
            f"{name}_{size}": value
            for name, side in ((name, getattr(self, name)) for name in sides)
            for size, value in zip(SIDE, (*side.view, side.prefix, side.extra), strict=True)
        }
