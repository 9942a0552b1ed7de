"""Corrections: estimates of what the tiles that a map drops would have added. One file, one idea."""

from vidsparse.corrections.base import Correction as Correction, SparseCall as SparseCall
from vidsparse.corrections.gated_coarse import GatedCoarse as GatedCoarse
from vidsparse.corrections.pooled_complement import PooledComplement as PooledComplement
from vidsparse.corrections.proxy_tokens import ProxyTokens as ProxyTokens
from vidsparse.corrections.rectified import Rectified as Rectified
from vidsparse.corrections.reshaped import Reshaped as Reshaped
