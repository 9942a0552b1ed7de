"""Cases of attention, and the comparison of an implementation with the float64 specification.

The tolerance is derived, not tuned: an error against float64 may be twice that of plain attention in the same dtype,
plus one rounding band of the dtype.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from vidsparse import BlockMap, VideoGrid
from vidsparse.grid import Tile


@dataclass(frozen=True)
class Case:
    """A grid, its tiles, and how many maps there are for how many samples and heads; keys may have another grid."""

    grid: VideoGrid
    query_tile: Tile = (2, 4, 4)
    key_tile: Tile | None = None
    batch: int = 1
    heads: int = 2
    map_batch: int = 1
    map_heads: int = 1
    extra_valid: tuple[int, ...] | None = None
    empty: tuple[int, ...] = ()  # query tiles without a key tile
    head_dim: int = 16
    key_grid: VideoGrid | None = None

    @property
    def keys(self) -> VideoGrid:
        """The grid of the keys."""
        return self.key_grid or self.grid

    def block_map(self, kept: torch.Tensor | None = None) -> BlockMap:
        """A random map, or one of these kept pairs, with garbage where the contents are undefined."""
        key_tile = self.key_tile or self.query_tile
        rows, columns = (math.prod(x) for x in (self.grid.tiles(self.query_tile), self.keys.tiles(key_tile)))
        if kept is None:
            kept = torch.rand(self.map_batch, self.map_heads, rows, columns) < 0.4
            kept[..., torch.arange(rows), torch.arange(rows) % columns] = True
            kept[:, :, list(self.empty)] = False
        block_map = BlockMap.from_dense(kept, self.grid, self.query_tile, key_tile, self.key_grid)
        indices = block_map.indices.clone()
        indices[torch.arange(indices.shape[-1]) >= block_map.counts[..., None]] = 2**31 - 1
        return dataclasses.replace(block_map, indices=indices)

    def tensors(self, count: int = 3) -> list[torch.Tensor]:
        """Query, key, value and, as the fourth, a gradient of the output."""
        lengths = self.grid.tokens, self.keys.tokens, self.keys.tokens, self.grid.tokens
        return [torch.randn(self.batch, tokens, self.heads, self.head_dim) for tokens in lengths[:count]]

    @property
    def valid(self) -> torch.Tensor | None:
        return None if self.extra_valid is None else torch.tensor(self.extra_valid)


Results = dict[str, torch.Tensor]
Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def run(attention: Attention, tensors: list[torch.Tensor], dtype: torch.dtype) -> Results:
    """out, lse and the gradients of a loss through both, all in float64."""
    *inputs, grad_out = (x.to(dtype) for x in tensors)
    q, k, v = (x.detach().requires_grad_() for x in inputs)
    out, lse = attention(q, k, v)
    assert out.shape == grad_out.shape and out.dtype == dtype
    assert lse.shape == (q.shape[0], q.shape[2], q.shape[1])
    assert lse.dtype == torch.promote_types(dtype, torch.float32)
    grad_lse = torch.where(lse.isneginf(), 0.0, torch.linspace(-1, 1, lse.numel(), dtype=lse.dtype).view_as(lse))
    torch.autograd.backward((out, lse), (grad_out, grad_lse))
    results = {"out": out, "lse": lse, "dq": q.grad, "dk": k.grad, "dv": v.grad}
    return {name: x.detach().double() for name, x in results.items() if x is not None}


def plain(mask: torch.Tensor) -> Attention:
    """What the tolerance is measured with: masked attention in float32, its weights and its results in the dtype."""

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        wide = torch.promote_types(q.dtype, torch.float32)
        dead = ~mask.any(dim=-1, keepdim=True)
        logits = q.transpose(1, 2).to(wide) @ k.transpose(1, 2).to(wide).mT * q.shape[-1] ** -0.5
        # Rows without keys stay finite until they are cleared.
        logits = logits.masked_fill(~mask & ~dead, float("-inf"))
        weights = logits.softmax(dim=-1).masked_fill(dead, 0.0).to(v.dtype)
        lse = logits.logsumexp(dim=-1).masked_fill(dead.squeeze(-1), float("-inf"))
        return (weights @ v.transpose(1, 2)).transpose(1, 2), lse

    return attention


def assert_close(results: Results, expected: Results, bound: Results, dtype: torch.dtype) -> None:
    """Each error is at most twice that of `bound` plus one rounding, in dv also that of an exponential."""
    single = torch.finfo(torch.float32).eps
    for name, wanted in expected.items():
        assert torch.equal(results[name].isneginf(), wanted.isneginf()), f"{name}: other rows are empty"
        alive = wanted.isfinite()
        if alive.any():
            error, allowed = ((x[name] - wanted)[alive].abs().max().item() for x in (results, bound))
            # The lse is float32, whatever the dtype of the inputs. dq and dk sum differences of float32 numbers of size
            # 10, which may cancel to nothing.
            band = (single if name == "lse" else torch.finfo(dtype).eps) / 2 * wanted[alive].abs().max().item()
            if name == "dv":  # of one token plain attention takes no exponential; those of a CPU are right to two units
                band += 2 * single * wanted[alive].abs().max().item()
            allowed = 2 * allowed + band + (10 * single if name in ("dq", "dk") else single)
            assert error <= allowed, f"{name}: error {error:.2e}, allowed {allowed:.2e}"
