"""The attributes that processors read of diffusers' attention modules, which share no class."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import torch

Layer = Callable[[torch.Tensor], torch.Tensor]
QueryKeyValue = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Attention(Protocol):
    """Projections from and to hidden states [batch, tokens, width]; norms of all heads together or of each."""

    heads: int
    to_q: Layer
    to_k: Layer
    to_v: Layer
    norm_q: Layer
    norm_k: Layer
    to_out: Iterable[Layer]


class FusableAttention(Attention, Protocol):
    """Attention that `fuse_qkv_projections` may have given one projection for all three."""

    fused_projections: bool
    to_qkv: Layer


class JointAttention(Attention, Protocol):
    """Attention whose text has its own weights."""

    add_q_proj: Layer
    add_k_proj: Layer
    add_v_proj: Layer
    norm_added_q: Layer
    norm_added_k: Layer
    to_add_out: Layer
