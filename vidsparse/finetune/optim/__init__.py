"""Optimizers and learning rates of a training, by name."""
