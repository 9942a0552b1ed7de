"""What `ProxyTokens` learns: how much each place of a box counts for its proxy, and how much a proxy counts."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from vidsparse.grid import Tile


class Proxies(NamedTuple):
    """What was learned for H heads and boxes of V tokens: three of float32, where zeros are the mean.

    Attributes:
        key, value: [H, V]; the softmax over the places of a box weighs the keys, or values, of the tokens there.
        mass: [H, 1], added to the logits of all proxies.
    """

    key: torch.Tensor
    value: torch.Tensor
    mass: torch.Tensor

    def to(self, device: torch.device) -> Proxies:
        """The same on a device."""
        return Proxies(*(x.to(device) for x in self))

    def of_heads(self, heads: torch.Tensor) -> Proxies:
        """Those of some heads, int64 [n]."""
        return Proxies(*(x.index_select(0, heads) for x in self))


class ProxyWeights(torch.nn.Module):
    """What one attention layer learns; it begins as the mean.

    Args:
        heads: of the layer. box: sides (frames, height, width) in tokens.
    """

    def __init__(self, heads: int, box: Tile):
        super().__init__()
        self.box = box
        self.key, self.value, self.mass = (
            torch.nn.Parameter(torch.zeros(heads, columns)) for columns in (math.prod(box), math.prod(box), 1)
        )

    def forward(self) -> Proxies:
        """Copies in float32: offloading takes the weights themselves away as soon as this returns."""
        return Proxies(*(x.to(torch.float32, copy=True) for x in (self.key, self.value, self.mass)))
