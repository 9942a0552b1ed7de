"""Learned proxies that say something, for any transformer."""

from __future__ import annotations

import torch

from vidsparse import Correction, ProxyTokens
from vidsparse.runtime.proxies import add_proxies, proxies_in


def give_proxies(transformer: torch.nn.Module, correction: Correction | None, seed: int = 0) -> None:
    """Random proxies for a correction that uses some, the same for the same seed; nothing for another."""
    if isinstance(correction, ProxyTokens) and correction.learned:
        add_proxies(transformer, correction.box)
        draw_proxies(transformer, seed)


@torch.no_grad()
def draw_proxies(transformer: torch.nn.Module, seed: int = 0) -> None:
    """Other numbers in the proxies of a transformer."""
    generator = torch.Generator().manual_seed(seed)
    for proxies in proxies_in(transformer).values():
        for weight in proxies.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
