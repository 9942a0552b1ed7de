"""The base of corrections, which estimate what attention to the dropped tiles would have added.

With `out` and `lse` of the kept keys, and those of the dropped ones, dense attention is exactly their merge:

    dense = rho * out + (1 - rho) * out_dropped,    rho = exp(lse - lse_dense)

so a correction estimates rho and the second term.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch

from vidsparse.block_map import BlockMap
from vidsparse.corrections.proxy_weights import Proxies
from vidsparse.patterns.base import Context


@dataclass(frozen=True)
class SparseCall:
    """The inputs and the result of sparse attention for the heads that share one map.

    Attributes:
        query, key, value, out: [batch, tokens, heads, head_dim].
        lse: natural log of the sum of exponentials over the kept keys, [batch, heads, tokens].
        block_map: which tiles were kept.
        context: layer and step; `memory` belongs to this correction and group of heads.
        exact: computes dense attention, out and lse, for corrections that learn from it; the report counts it.
        extra_valid: int [batch], how many prefix and suffix tokens, in sequence order, are keys; None: all.
        gate: the model's learned gate for each channel [batch, tokens, heads, head_dim]; None without one.
        proxies: what `ProxyTokens` has learned for these heads; None without it.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    out: torch.Tensor
    lse: torch.Tensor
    block_map: BlockMap
    context: Context
    exact: Callable[[], tuple[torch.Tensor, torch.Tensor]]
    extra_valid: torch.Tensor | None = None
    gate: torch.Tensor | None = None
    proxies: Proxies | None = None

    @property
    def extra_bias(self) -> torch.Tensor:
        """What to add to the logits of prefix and suffix tokens, float32 [batch or 1, 1, 1, prefix + suffix].

        0 for keys and -inf for padding, in sequence order.
        """
        number = torch.arange(self.block_map.grid.prefix + self.block_map.grid.suffix, device=self.out.device)
        if self.extra_valid is None:
            return torch.zeros(1, 1, 1, len(number), device=self.out.device)
        is_key = number < self.extra_valid.to(self.out.device)[:, None]
        return torch.where(is_key, 0.0, float("-inf"))[:, None, None]


class Correction(ABC):
    """Improves the output of sparse attention. Subclasses are frozen dataclasses of their parameters."""

    @abstractmethod
    def correct(self, call: SparseCall) -> torch.Tensor:
        """A better output than `call.out`, of the same shape and dtype."""
