"""A transformer from outside diffusers, and the adapter that a user would write for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from vidsparse import VideoGrid
from vidsparse.runtime.adapter import Adapter, SparseLayer, WrappedProcessor

WIDTH = 16


class Processor:
    """Attention of one head, as a model outside diffusers might have it."""

    def __call__(self, attn: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        query, key, value = attn.to_qkv(hidden_states)[:, None].chunk(3, dim=-1)
        return torch.nn.functional.scaled_dot_product_attention(query, key, value)[:, 0]


class Attention(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_qkv = torch.nn.Linear(WIDTH, 3 * WIDTH)
        self.processor = Processor()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.processor(self, hidden_states)


class Foreign(torch.nn.Module):
    """A transformer that vidsparse does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()

    def forward(self, hidden_states: torch.Tensor, timestep: float) -> torch.Tensor:
        out: torch.Tensor = self.attention(hidden_states.flatten(1, 3))
        return out.reshape(hidden_states.shape)


class Derived(Foreign):
    pass


class ForeignProcessor(WrappedProcessor):
    def __call__(self, attn: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        call = self.layer.begin(self.unsupported())
        if call.reason is not None:
            out: torch.Tensor = self.original(attn, hidden_states)
        else:
            query, key, value = attn.to_qkv(hidden_states).unflatten(-1, (3, 1, WIDTH)).unbind(2)
            out = call.attend(query, key, value).flatten(2)
        return self.layer.end(call, out)


class ForeignAdapter(Adapter):
    def self_attentions(self, transformer: torch.nn.Module) -> dict[str, torch.nn.Module]:
        return {"attention": transformer.attention}  # type: ignore[dict-item]

    def grid(self, transformer: torch.nn.Module, call: Mapping[str, Any]) -> VideoGrid:
        return VideoGrid(*call["hidden_states"].shape[1:4])

    def processor(self, original: Any, layer: SparseLayer) -> ForeignProcessor:
        return ForeignProcessor(original, layer)
