"""The geometry of tiles that hold only some voxels of their box: those of a sparse volume."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import torch

from vidsparse_kernels.layout import Tiling


@dataclass(frozen=True, eq=False)
class VolumeTiling(Tiling):
    """A sequence of prefix tokens, tokens of a volume, and suffix tokens. Each token says which tile it is in.

    `view` is (1, 1, tokens of the volume). `tile` has the sides of the boxes, of which any number of voxels can be
    tokens, but at least one.

    Attributes:
        owner: int64 [tokens of the volume], the number of each token's tile, on the CPU. Each number from 0 to the
            highest occurs.
    """

    boxes: ClassVar[bool] = False

    owner: torch.Tensor = field(kw_only=True)
    _sizes: dict[torch.device | None, torch.Tensor] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def tiles(self) -> int:
        """The number of tiles, all of which hold a token."""
        return int(self.owner.max()) + 1

    @property
    def ragged(self) -> bool:
        """True: a tile may hold any number of tokens."""
        return True

    @cached_property
    @torch.inference_mode(False)  # a training may use it later
    def tile_tokens(self) -> tuple[torch.Tensor, ...]:
        """Positions of each tile's tokens in the sequence, ascending: one int64 tensor per tile."""
        positions = self.owner.argsort(stable=True) + self.prefix
        return torch.split(positions, self.tile_sizes().tolist())

    @property
    def tile_of_token(self) -> torch.Tensor:
        """The tile that holds each token of the volume: int64, on the CPU."""
        return self.owner

    def tile_sizes(self, device: torch.device | None = None) -> torch.Tensor:
        """The number of tokens in each tile: int64 [tiles] on `device` (default: the CPU)."""
        if device not in self._sizes:
            with torch.inference_mode(False):
                self._sizes[device] = torch.bincount(self.owner).to(device or "cpu")
        return self._sizes[device]
