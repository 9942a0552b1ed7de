"""Execute the PTX that Triton emits for a chip that is not there, on a CPU.

    with emulated(90) as chip:
        out = sparse_attention(query, key, value, block_map, impl="triton")  # CPU tensors, code for Hopper

Checked while it runs: every access against the tensors passed and its alignment, mbarriers (phases, arrivals, bytes),
named barriers, the rules of tensor maps, fences between ordinary and asynchronous accesses, deadlock. Asynchronous work
is done early or late, as `Order` says. Not covered: ptxas and its machine code, clocks, the chip's rounding of ex2 and
of its matrix units (products are exact here and their sums are float32), tcgen05.
"""

from emulator.chip import Chip, Launched, emulated
from emulator.launch import ORDERS, EmulationError, Order, run, tensor_map

__all__ = ["ORDERS", "Chip", "EmulationError", "Launched", "Order", "emulated", "run", "tensor_map"]
