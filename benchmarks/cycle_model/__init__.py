"""A model of Hopper's multiprocessors that ranks launches by their machine code; see benchmarks/model.py."""
