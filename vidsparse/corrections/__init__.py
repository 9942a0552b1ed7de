"""Corrections: what is added back for the tiles that a map drops. One file, one idea."""

from vidsparse.corrections.base import Correction, SparseCall

__all__ = ["Correction", "SparseCall"]
