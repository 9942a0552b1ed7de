"""Patterns: which key tiles each query tile sees. One file, one published idea."""

from vidsparse.patterns.base import ContentPattern as ContentPattern, Context as Context, Pattern as Pattern
from vidsparse.patterns.budget import StepBudget as StepBudget
from vidsparse.patterns.choice import PerLayer as PerLayer, PerPhase as PerPhase
from vidsparse.patterns.dense import Dense as Dense
from vidsparse.patterns.exact_blocks import ExactBlocks as ExactBlocks
from vidsparse.patterns.free_swim import FreeSwim as FreeSwim
from vidsparse.patterns.gridded import Gridded as Gridded, GriddedHeads as GriddedHeads
from vidsparse.patterns.head_modes import HeadModes as HeadModes
from vidsparse.patterns.inward_window import InwardWindow as InwardWindow
from vidsparse.patterns.learned_gate import LearnedGate as LearnedGate
from vidsparse.patterns.light_forcing import LightForcing as LightForcing
from vidsparse.patterns.mixture_of_blocks import MixtureOfBlocks as MixtureOfBlocks
from vidsparse.patterns.per_head import PerHead as PerHead
from vidsparse.patterns.power_of_two import PowerOfTwo as PowerOfTwo
from vidsparse.patterns.radial import Radial as Radial
from vidsparse.patterns.radial_raster import RadialRaster as RadialRaster
from vidsparse.patterns.reuse import Reuse as Reuse
from vidsparse.patterns.schedule import StepSchedule as StepSchedule
from vidsparse.patterns.shifted_windows import ShiftedWindows as ShiftedWindows
from vidsparse.patterns.sliding_clip import SlidingClip as SlidingClip
from vidsparse.patterns.sliding_tile import SlidingTile as SlidingTile
from vidsparse.patterns.spatial_temporal import SpatialTemporal as SpatialTemporal
from vidsparse.patterns.temporal_bias import TemporalBias as TemporalBias
from vidsparse.patterns.top_blocks import TopBlocks as TopBlocks
from vidsparse.patterns.video_sparse import VideoSparse as VideoSparse
