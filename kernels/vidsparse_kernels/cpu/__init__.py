"""Block-sparse attention on a CPU."""
