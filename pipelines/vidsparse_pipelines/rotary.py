"""Rotary embeddings, in the forms that model families use.

`x` is a query or key [batch, tokens, heads, head_dim], or with all heads side by side in the last axis.
"""

from __future__ import annotations

import torch


def rotate_pairs(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate neighbouring channels; `cos` and `sin` hold each angle twice, [1, tokens, 1, head_dim]."""
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = cos[..., 0::2], sin[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).type_as(x)


def rotate_complex(x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Rotate neighbouring channels, each pair a complex number, by the complex numbers [1, tokens, 1, head_dim / 2]."""
    pairs = torch.view_as_complex(x.to(turns.real.dtype).unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turns).flatten(-2).type_as(x)


def rotate_pairs_of_heads(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate neighbouring channels in float32, by angles of each head: `cos` and `sin` are [tokens, heads, pairs]."""
    even, odd = x[..., 0::2].float(), x[..., 1::2].float()
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).type_as(x)


def rotate_pairs_by_matrices(x: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """Rotate neighbouring channels by matrices [1, tokens, 1, head_dim / 2, 2, 2], rounded to bfloat16."""
    rotated: torch.Tensor = (matrices * x.float().unflatten(-1, (-1, 1, 2))).sum(dim=-1).flatten(-2)
    return rotated.to(torch.bfloat16).type_as(x)  # Kandinsky 5 rounds here, whatever its own dtype


def rotate_halves(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate each channel of the first half of a head with the same one of the second half."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).type_as(x)


def rotate_halves_of_first(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the halves of the first channels of each head.

    Args:
        cos, sin: [tokens, channels], each angle twice.
    """
    rotated, rest = x.split((cos.shape[-1], x.shape[-1] - cos.shape[-1]), dim=-1)
    cos, sin = (angles.chunk(2, dim=-1)[0][:, None].to(x.dtype) for angles in (cos, sin))
    return torch.cat((rotate_halves(rotated, cos, sin), rest), dim=-1)
