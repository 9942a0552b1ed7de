"""The parts of benchmarks/gpu.py and gpu_tune.py. They need torch and triton alone."""
