"""The entries of a plan that divides a sequence among GPUs, as `enable_parallelism` of diffusers takes them."""

from __future__ import annotations

from typing import Any


def divided(dim: int, dims: int) -> Any:
    """An argument of a module that each GPU gets its part of.

    Args:
        dim: the dimension of the tokens. dims: how many dimensions the tensor has; one with another number stays whole.
    """
    from diffusers.models._modeling_parallel import ContextParallelInput

    return ContextParallelInput(split_dim=dim, expected_dims=dims)


def divided_output(dim: int, dims: int) -> Any:
    """As `divided`, an output of a module."""
    from diffusers.models._modeling_parallel import ContextParallelInput

    return ContextParallelInput(split_dim=dim, expected_dims=dims, split_output=True)


def joined_output() -> Any:
    """An output [batch, tokens, width] of a module whose parts are put together on each GPU."""
    from diffusers.models._modeling_parallel import ContextParallelOutput

    return ContextParallelOutput(gather_dim=1, expected_dims=3)
