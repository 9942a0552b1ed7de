"""Sparse attention for the video diffusion transformers of Hugging Face diffusers."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vidsparse.attention import merge, sparse_attention
    from vidsparse.block_map import BlockMap, HeadGroup, head_groups
    from vidsparse.corrections import Correction, GatedCoarse, PooledComplement, Rectified, Reshaped, SparseCall
    from vidsparse.grid import VideoGrid
    from vidsparse.lora import LoraRecipe, load_lora, save_lora
    from vidsparse.patterns import (
        ContentPattern,
        Context,
        Dense,
        ExactBlocks,
        Gridded,
        GriddedHeads,
        HeadModes,
        MixtureOfBlocks,
        Pattern,
        PowerOfTwo,
        Radial,
        RadialRaster,
        Reuse,
        SlidingTile,
        SpatialTemporal,
        StepSchedule,
        TopBlocks,
        VideoSparse,
    )
    from vidsparse.positions import extend_positions
    from vidsparse.report import Report
    from vidsparse.run import Run, attn_processors, sparsify
    from vidsparse.sampler import build_scheduler, seed_steps
    from vidsparse_pipelines import register_adapter
    from vidsparse_pipelines.gates import load_gates

__all__ = [
    "BlockMap",
    "ContentPattern",
    "Context",
    "Correction",
    "Dense",
    "ExactBlocks",
    "GatedCoarse",
    "Gridded",
    "GriddedHeads",
    "HeadGroup",
    "HeadModes",
    "LoraRecipe",
    "MixtureOfBlocks",
    "Pattern",
    "PooledComplement",
    "PowerOfTwo",
    "Radial",
    "RadialRaster",
    "Rectified",
    "Report",
    "Reshaped",
    "Reuse",
    "Run",
    "SlidingTile",
    "SparseCall",
    "SpatialTemporal",
    "StepSchedule",
    "TopBlocks",
    "VideoGrid",
    "VideoSparse",
    "attn_processors",
    "build_scheduler",
    "extend_positions",
    "head_groups",
    "load_gates",
    "load_lora",
    "merge",
    "register_adapter",
    "save_lora",
    "seed_steps",
    "sparse_attention",
    "sparsify",
]

_MODULES = {
    "vidsparse.attention": ("merge", "sparse_attention"),
    "vidsparse.block_map": ("BlockMap", "HeadGroup", "head_groups"),
    "vidsparse.corrections": ("Correction", "GatedCoarse", "PooledComplement", "Rectified", "Reshaped", "SparseCall"),
    "vidsparse.grid": ("VideoGrid",),
    "vidsparse.lora": ("LoraRecipe", "load_lora", "save_lora"),
    "vidsparse.patterns": (
        "ContentPattern",
        "Context",
        "Dense",
        "ExactBlocks",
        "Gridded",
        "GriddedHeads",
        "HeadModes",
        "MixtureOfBlocks",
        "Pattern",
        "PowerOfTwo",
        "Radial",
        "RadialRaster",
        "Reuse",
        "SlidingTile",
        "SpatialTemporal",
        "StepSchedule",
        "TopBlocks",
        "VideoSparse",
    ),
    "vidsparse.positions": ("extend_positions",),
    "vidsparse.report": ("Report",),
    "vidsparse.run": ("Run", "attn_processors", "sparsify"),
    "vidsparse.sampler": ("build_scheduler", "seed_steps"),
    "vidsparse_pipelines": ("register_adapter",),
    "vidsparse_pipelines.gates": ("load_gates",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    # Names load when they are used, so that the command line answers --help without torch.
    if name in ("corrections", "patterns"):
        return import_module(f"vidsparse.{name}")
    if name == "__version__":
        return version("vidsparse")
    if name not in _HOME:
        raise AttributeError(f"module 'vidsparse' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return __all__
