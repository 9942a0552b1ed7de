"""Sparse attention for the video diffusion transformers of Hugging Face diffusers."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vidsparse.attention import merge, sparse_attention
    from vidsparse.block_map import BlockMap
    from vidsparse.grid import VideoGrid
    from vidsparse.patterns import Context, Dense, Pattern, Radial, RadialRaster, SlidingTile, StepSchedule
    from vidsparse.report import Report
    from vidsparse.sparsify import Run, attn_processors, sparsify

__all__ = [
    "BlockMap",
    "Context",
    "Dense",
    "Pattern",
    "Radial",
    "RadialRaster",
    "Report",
    "Run",
    "SlidingTile",
    "StepSchedule",
    "VideoGrid",
    "attn_processors",
    "merge",
    "sparse_attention",
    "sparsify",
]

_MODULES = {
    "vidsparse.attention": ("merge", "sparse_attention"),
    "vidsparse.block_map": ("BlockMap",),
    "vidsparse.grid": ("VideoGrid",),
    "vidsparse.patterns": ("Context", "Dense", "Pattern", "Radial", "RadialRaster", "SlidingTile", "StepSchedule"),
    "vidsparse.report": ("Report",),
    "vidsparse.sparsify": ("Run", "attn_processors", "sparsify"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    # Names load when they are used, so that the command line answers --help without torch.
    if name not in _HOME:
        raise AttributeError(f"module 'vidsparse' has no attribute {name!r}")
    # All names of the module at once: its import has set `vidsparse.sparsify` to the module, not to the function.
    module = import_module(_HOME[name])
    globals().update({sibling: getattr(module, sibling) for sibling in _MODULES[_HOME[name]]})
    return globals()[name]


def __dir__() -> list[str]:
    return __all__
