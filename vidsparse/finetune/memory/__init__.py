"""Memory of a training: what it will take, and what of it need not be on the GPU."""
