"""Finds, for a model at hand, which pattern each head of each layer takes at each level of noise."""
