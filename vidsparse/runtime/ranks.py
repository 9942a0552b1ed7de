"""The GPUs that share a video under diffusers' context parallelism, and what cannot be shared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed

from vidsparse.runtime.adapter import Adapter
from vidsparse.runtime.exchange import HeadExchange


@dataclass(frozen=True)
class Ranks:
    """The processes of one context-parallel transformer, one for each GPU.

    Attributes:
        group: of the processes, a `torch.distributed.ProcessGroup`.
        uneven: diffusers' `ulysses_anything`: heads and tokens need not be multiples of the number of ranks.
    """

    group: Any
    uneven: bool = False

    @classmethod
    def of(cls, transformer: torch.nn.Module, adapter: Adapter) -> Ranks | None:
        """Those that `enable_parallelism` has given a transformer; None where it has not.

        Raises:
            NotImplementedError: a ring.
            ValueError: heads that the ranks cannot share.
        """
        config = getattr(getattr(transformer, "_parallel_config", None), "context_parallel_config", None)
        if config is None:
            return None
        if config.ring_degree > 1:
            raise NotImplementedError(
                f"ring_degree={config.ring_degree} passes keys from GPU to GPU in pieces, and a block map is for all "
                "keys at once; use ulysses_degree alone"
            )
        ranks = cls(config._ulysses_mesh.get_group(), config.ulysses_anything)
        if not ranks.uneven:
            check_degree(ranks.size, transformer, adapter)
        return ranks

    @property
    def size(self) -> int:
        return distributed.get_world_size(self.group)

    @property
    def rank(self) -> int:
        return distributed.get_rank(self.group)

    def shares(self, tokens: int) -> tuple[int, ...]:
        """How many of the divided tokens each rank holds, as diffusers divides them.

        Raises:
            ValueError: they are no multiple of the number of ranks.
        """
        if tokens % self.size and not self.uneven:
            raise ValueError(
                f"{tokens} tokens cannot be divided by {self.size} GPUs; choose a height, width or number of frames "
                f"whose tokens are a multiple of {self.size}, or ulysses_anything=True"
            )
        return tuple(tokens // self.size + (rank < tokens % self.size) for rank in range(self.size))

    def exchange(self, tokens: int, ends: tuple[int, int], heads: tuple[tuple[int, ...], ...]) -> HeadExchange:
        """The exchange of a call.

        Args:
            tokens: of the whole sequence.
            ends: how many of them, at the start and at the end, are whole on each rank.
            heads: the heads of each rank.

        Raises:
            ValueError: the rest of the tokens cannot be divided.
        """
        return HeadExchange(self.group, self.rank, heads, self.shares(tokens - sum(ends)), *ends)


def check_degree(degree: int, transformer: torch.nn.Module, adapter: Adapter, name: str = "ulysses_degree") -> None:
    """Refuse a number of ranks that does not divide the heads of each self-attention; `name` is that of the setting.

    Raises:
        ValueError: says which numbers do.
    """
    for heads in {adapter.heads(attention) for attention in adapter.self_attentions(transformer).values()}:
        if heads is not None and heads % degree:
            possible = ", ".join(str(n) for n in range(2, heads + 1) if heads % n == 0)
            raise ValueError(
                f"{name}={degree} does not divide the {heads} heads of {type(transformer).__name__}; "
                f"these do: {possible}"
            )
