"""What a gate learns from the attention between tiles: the divergence of its estimate, and what its tiles keep."""

from __future__ import annotations

import torch


def divergence(attention: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """KL(attention || softmax(scores)) in nats, the mean over all rows.

        KL = sum_j P_j (log P_j - log G_j),    G = softmax(scores)

    Args:
        attention: [..., tiles], rows that add up to 1. Where it is 0, a tile counts nothing.
        scores: [..., tiles]. Gradients flow to them.
    """
    return torch.nn.functional.kl_div(scores.log_softmax(dim=-1), attention, reduction="none").sum(dim=-1).mean()


def kept_attention(attention: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """The fraction of the attention that falls on kept tiles, the mean over all rows. `kept`: bool like `attention`."""
    return (attention * kept).sum(dim=-1).mean()
