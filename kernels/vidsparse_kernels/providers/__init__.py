"""Attention kernels of other packages, where they are installed: NVIDIA's cuDNN frontend and FlashAttention-4."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Protocol, cast

import torch

from vidsparse_kernels.layout import TileLayout
from vidsparse_kernels.providers.runs import Runs

PROVIDERS = {"cudnn": "vidsparse_kernels.providers.cudnn", "fa4": "vidsparse_kernels.providers.flash"}


class Provider(Protocol):
    """The module of a provider; see `cudnn.py` for what its functions take and return."""

    lacks: Callable[[torch.device], str | None]
    unsupported: Callable[[torch.Tensor, TileLayout, bool, bool], str | None]
    attention: Callable[
        [torch.Tensor, torch.Tensor, torch.Tensor, Runs, torch.Tensor | None, float],
        tuple[torch.Tensor, torch.Tensor],
    ]


def provider(impl: str) -> Provider:
    """The provider with this name, one of `PROVIDERS`. Its package is imported when it is first asked."""
    return cast(Provider, import_module(PROVIDERS[impl]))
