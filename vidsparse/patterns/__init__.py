"""Patterns: which key tiles each query tile sees. One file, one published idea."""

from vidsparse.patterns.base import ContentPattern, Context, Pattern
from vidsparse.patterns.dense import Dense
from vidsparse.patterns.exact_blocks import ExactBlocks
from vidsparse.patterns.gridded import Gridded, GriddedHeads
from vidsparse.patterns.head_modes import HeadModes
from vidsparse.patterns.mixture_of_blocks import MixtureOfBlocks
from vidsparse.patterns.power_of_two import PowerOfTwo
from vidsparse.patterns.radial import Radial
from vidsparse.patterns.radial_raster import RadialRaster
from vidsparse.patterns.reuse import Reuse
from vidsparse.patterns.schedule import StepSchedule
from vidsparse.patterns.sliding_tile import SlidingTile
from vidsparse.patterns.spatial_temporal import SpatialTemporal
from vidsparse.patterns.top_blocks import TopBlocks
from vidsparse.patterns.video_sparse import VideoSparse

__all__ = [
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
]
