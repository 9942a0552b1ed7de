"""Attention kernels of other packages, used where they are installed: NVIDIA's cuDNN frontend and FlashAttention-4."""
