"""Corrections: what is added back for the tiles that a map drops. One file, one idea."""

from vidsparse.corrections.base import Correction as Correction, SparseCall as SparseCall
from vidsparse.corrections.gated_coarse import GatedCoarse as GatedCoarse
from vidsparse.corrections.pooled_complement import PooledComplement as PooledComplement
from vidsparse.corrections.rectified import Rectified as Rectified
from vidsparse.corrections.reshaped import Reshaped as Reshaped
