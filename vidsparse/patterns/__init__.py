"""Patterns: who looks at whom. One file, one published idea."""

from vidsparse.patterns.base import Context, Pattern
from vidsparse.patterns.dense import Dense
from vidsparse.patterns.radial import Radial
from vidsparse.patterns.radial_raster import RadialRaster
from vidsparse.patterns.schedule import StepSchedule
from vidsparse.patterns.sliding_tile import SlidingTile

__all__ = ["Context", "Dense", "Pattern", "Radial", "RadialRaster", "SlidingTile", "StepSchedule"]
