"""Pooling tiles, and choosing among them."""
