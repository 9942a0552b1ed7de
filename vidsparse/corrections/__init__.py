"""Corrections: estimates of what the tiles that a map drops would have added. One file, one idea."""

from vidsparse.corrections.base import Correction, SparseCall
from vidsparse.corrections.gated_coarse import GatedCoarse
from vidsparse.corrections.pooled_complement import PooledComplement
from vidsparse.corrections.rectified import Rectified
from vidsparse.corrections.reshaped import Reshaped

__all__ = ["Correction", "GatedCoarse", "PooledComplement", "Rectified", "Reshaped", "SparseCall"]
