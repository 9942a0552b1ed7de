"""Attention for a list of key tiles per query tile. Takes tensors only; knows nothing of patterns or models."""
