from . import corrections as corrections, patterns as patterns
from .attention import merge as merge, sparse_attention as sparse_attention
from .block_map import BlockMap as BlockMap, HeadGroup as HeadGroup, head_groups as head_groups
from .caches import enable_cache as enable_cache
from .corrections import (
    Correction as Correction,
    GatedCoarse as GatedCoarse,
    PooledComplement as PooledComplement,
    ProxyTokens as ProxyTokens,
    Rectified as Rectified,
    Reshaped as Reshaped,
    SparseCall as SparseCall,
)
from .estimation.estimate import Estimate as Estimate, estimate as estimate
from .generation.positions import extend_positions as extend_positions
from .generation.scheduler import build_scheduler as build_scheduler, seed_steps as seed_steps
from .grid import VideoGrid as VideoGrid
from .lora import LoraRecipe as LoraRecipe, load_lora as load_lora, save_lora as save_lora, unload_lora as unload_lora
from .patterns import (
    ContentPattern as ContentPattern,
    Context as Context,
    Dense as Dense,
    ExactBlocks as ExactBlocks,
    FreeSwim as FreeSwim,
    Gridded as Gridded,
    GriddedHeads as GriddedHeads,
    HeadModes as HeadModes,
    InwardWindow as InwardWindow,
    LearnedGate as LearnedGate,
    LightForcing as LightForcing,
    MixtureOfBlocks as MixtureOfBlocks,
    Pattern as Pattern,
    PerHead as PerHead,
    PerLayer as PerLayer,
    PerPhase as PerPhase,
    PowerOfTwo as PowerOfTwo,
    Radial as Radial,
    RadialRaster as RadialRaster,
    Reuse as Reuse,
    ShiftedWindows as ShiftedWindows,
    SlidingClip as SlidingClip,
    SlidingTile as SlidingTile,
    SpatialTemporal as SpatialTemporal,
    StepBudget as StepBudget,
    StepSchedule as StepSchedule,
    TemporalBias as TemporalBias,
    TopBlocks as TopBlocks,
    VideoSparse as VideoSparse,
)
from .pictures.plot import plot as plot
from .presets import PRESETS as PRESETS, Preset as Preset, preset as preset
from .profiles import Profile as Profile, load_profile as load_profile
from .runtime.active import report as report, restore as restore
from .runtime.chosen import ChosenMap as ChosenMap
from .runtime.gates import load_gates as load_gates
from .runtime.parallelism import enable_parallelism as enable_parallelism
from .runtime.recommended import preset_for as preset_for
from .runtime.registry import register_adapter as register_adapter
from .runtime.report import Report as Report
from .runtime.run import Run as Run
from .runtime.sparsify import attn_processors as attn_processors, sparsify as sparsify
from .volume import SparseVolume as SparseVolume

__version__: str
