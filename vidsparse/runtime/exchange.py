"""The exchange of Ulysses: from some tokens of all heads on each GPU to all tokens of some heads, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed

from vidsparse.block_map import head_indices


@dataclass(frozen=True)
class HeadExchange:
    """Exchanges the attention inputs and outputs of one call. Gradients take the same way back.

    Each GPU holds its part of the sequence, and whole on each GPU may be tokens at either end of it, such as text. What
    a GPU computes from its copy of these differs from GPU to GPU, as for weights: their gradient is the sum over GPUs.

    Attributes:
        group: the processes, a `torch.distributed.ProcessGroup`. rank: of this one.
        heads: the heads of each rank; each head once.
        tokens: how many of the divided tokens each rank holds, in the order of the sequence.
        before, after: how many tokens at the start and at the end of the sequence are whole on each rank.
    """

    group: Any
    rank: int
    heads: tuple[tuple[int, ...], ...]
    tokens: tuple[int, ...]
    before: int = 0
    after: int = 0

    @property
    def own_heads(self) -> tuple[int, ...]:
        """The heads of this rank."""
        return self.heads[self.rank]

    def split_heads(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """All tokens of this rank's heads, [batch, tokens, own heads, head_dim] in the order of the sequence.

        Args:
            tensors: [batch, tokens of this rank, heads, head_dim], of one shape; all in one exchange.
        """
        # Under autocast dtypes differ; the widest of them holds the others exactly.
        x = torch.stack(list(tensors))
        middle = x[:, :, self.before : x.shape[2] - self.after]
        # Tokens first: the parts that arrive from the ranks, one after another, are then the whole sequence.
        middle = middle.permute(2, 0, 1, 3, 4)
        parts = [middle.index_select(3, self._index(heads, x)) for heads in self.heads]
        rows = middle[0, :, :, 0].numel() * len(self.own_heads)
        arrived = self._all_to_all(parts, [count * rows for count in self.tokens])
        middle = arrived.view(-1, *middle.shape[1:3], len(self.own_heads), x.shape[-1]).permute(1, 2, 0, 3, 4)
        if self.before or self.after:
            own = x.index_select(3, self._index(self.own_heads, x))
            ends = own[:, :, : self.before], own[:, :, own.shape[2] - self.after :]
            middle = torch.cat((ends[0], middle, ends[1]), dim=2)
        return [part.to(tensor.dtype) for part, tensor in zip(middle.unbind(), tensors, strict=True)]

    def join_heads(self, out: torch.Tensor) -> torch.Tensor:
        """The tokens of this rank with all heads, [batch, tokens of this rank, heads, head_dim].

        Args:
            out: [batch, tokens, own heads, head_dim], as `split_heads` returns them.
        """
        x = out.permute(2, 1, 0, 3)
        before, middle, after = x.split((self.before, sum(self.tokens), self.after), dim=1)
        parts = [torch.cat((before, part, after), dim=1) for part in middle.split(self.tokens, dim=1)]
        rows = parts[self.rank][0].numel()
        arrived = self._all_to_all(parts, [len(heads) * rows for heads in self.heads])
        arrived = arrived.view(-1, *parts[self.rank].shape[1:])
        return arrived.index_select(0, self._order(arrived)).permute(2, 1, 0, 3)

    @torch.no_grad()
    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """What all ranks have computed for their heads: [batch, own heads, ...] -> [batch, heads, ...], no gradient."""
        part = x.transpose(0, 1)
        rows = part[0].numel()
        arrived = self._all_to_all([part] * len(self.heads), [len(heads) * rows for heads in self.heads])
        arrived = arrived.view(-1, *part.shape[1:])
        return arrived.index_select(0, self._order(arrived)).transpose(0, 1)

    def _all_to_all(self, parts: list[torch.Tensor], receive: list[int]) -> torch.Tensor:
        sent = torch.cat([part.flatten() for part in parts])
        out: torch.Tensor = _AllToAll.apply(sent, [part.numel() for part in parts], receive, self.group)  # type: ignore[no-untyped-call]
        return out

    def _order(self, x: torch.Tensor) -> torch.Tensor:
        """Where each head is among those of the ranks in turn."""
        place = [head for heads in self.heads for head in heads]
        return self._index(tuple(sorted(range(len(place)), key=place.__getitem__)), x)

    def _index(self, heads: tuple[int, ...], x: torch.Tensor) -> torch.Tensor:
        return head_indices(heads, x.device)


def join_parts(part: torch.Tensor, shares: Sequence[int], group: Any) -> torch.Tensor:
    """The parts of all ranks one after another, on each rank; a part gets the sum of its gradients on all ranks.

    Args:
        part: [tokens of this rank, ...].
        shares: how many tokens each rank has.
        group: the ranks, a `torch.distributed.ProcessGroup`.

    Returns:
        [tokens of all ranks, ...].
    """
    row = part[0].numel()
    sent = part.flatten().repeat(len(shares))
    out: torch.Tensor = _AllToAll.apply(  # type: ignore[no-untyped-call]
        sent, [part.numel()] * len(shares), [count * row for count in shares], group
    )
    return out.view(-1, *part.shape[1:])


class _AllToAll(torch.autograd.Function):
    """Sends a part of a flat tensor to each rank, and returns the parts that arrive, in the order of the ranks."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, send: list[int], receive: list[int], group: Any) -> torch.Tensor:
        ctx.back = receive, send, group
        out = x.new_empty(sum(receive))
        distributed.all_to_all_single(out, x, receive, send, group=group)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        back: torch.Tensor = _AllToAll.apply(gradients[0].contiguous(), *ctx.back)  # type: ignore[no-untyped-call]
        return back, None, None, None
