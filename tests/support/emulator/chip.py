"""A driver for Triton whose launches run in the emulator: kernels are compiled for a chip, tensors live on the CPU.

Triton binds, specialises and compiles as it does on that chip, down to PTX; ptxas is left out. What stands in for a
binary is the PTX itself.
"""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget

from emulator import core
from emulator.launch import LATE, SWIZZLES, Order, run, tensor_map

# The most shared memory that a block may have, in bytes (CUDA C++ Programming Guide, "Compute Capabilities").
SHARED_MEMORY = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 120: 101376}
MOST_PROGRAMS = 2**31 - 1, 2**16 - 1, 2**16 - 1


@dataclass(frozen=True)
class Launched:
    """One launch: which kernel, its grid, and how often warps executed each instruction."""

    kernel: str
    grid: tuple[int, int, int]
    counts: Counter[str]


@dataclass(eq=False)
class Chip:
    """What Triton asks of a driver, and what it did.

    Attributes:
        capability: 90 for compute capability 9.0.
        order: of asynchronous work.
        edit: what becomes of a kernel's PTX before it is executed; for finding out whether a fault would be noticed.
        launches: all launches, in their order.
    """

    capability: int
    order: Order = LATE
    edit: Callable[[str], str] = str
    launches: list[Launched] = field(default_factory=list)

    @property
    def utils(self) -> Chip:
        return self

    @property
    def launcher_cls(self) -> Callable[..., Any]:
        # Triton keeps it with the compiled kernel, which the next chip of this kind finds again.
        return lambda source, metadata: functools.partial(_start, source, metadata)

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability  # Triton keeps kernels by device: those of each kind of chip stay apart

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": SHARED_MEMORY[self.capability], "multiprocessor_count": 4}

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[str, str, int, int, int]:
        """The kernel as (module, function, registers, spills, most threads): the function is its PTX."""
        return name, binary.decode(), 0, 0, 1024

    def start(
        self, ptx: str, signature: Sequence[Any], metadata: Any, grid: tuple[int, int, int], values: Sequence[Any]
    ) -> None:
        """Execute a kernel on these arguments.

        Raises:
            NotImplementedError: clusters of blocks, or scratch memory.
        """
        if metadata.num_ctas > 1 or metadata.global_scratch_size:
            raise NotImplementedError(f"{metadata.name} wants clusters or scratch memory, which the emulator has not")
        if any(not 1 <= size <= most for size, most in zip(grid, MOST_PROGRAMS, strict=True)):
            raise ValueError(f"a grid of {grid} programs: each axis has 1 to {MOST_PROGRAMS}")
        boxes = iter(getattr(metadata, "tensordesc_meta", None) or ())
        arguments: list[Any] = []
        storages: dict[int, int] = {}
        for value, kind in zip(values, signature, strict=True):
            for one, its_kind in _flat(value, kind):
                arguments += _arguments(one, its_kind, boxes, storages)
        arguments += [0, 0]  # no scratch memory, global or of the profiler
        memory = sorted(storages.items())
        counts = run(self.edit(ptx), arguments, memory, grid, metadata.shared, self.order)
        self.launches.append(Launched(metadata.name, grid, counts))


def _start(source: Any, metadata: Any, *launch: Any) -> None:
    x, y, z, _stream, ptx, _packed, _launch_metadata, _enter, _exit, *values = launch
    chip = triton.runtime.driver.active
    if not isinstance(chip, Chip):
        raise RuntimeError("a kernel that was compiled for the emulator is launched outside of `emulated`")
    chip.start(ptx, list(source.signature.values()), metadata, (x, y, z), values)


def _flat(value: Any, kind: Any) -> Iterator[tuple[Any, str]]:
    """Arguments with their types, those in tuples too; constants are no arguments."""
    if isinstance(kind, tuple):
        for one, its_kind in zip(value, kind, strict=True):
            yield from _flat(one, its_kind)
    elif kind != "constexpr":
        yield value, kind


def _arguments(value: Any, kind: str, boxes: Iterator[dict[str, Any]], storages: dict[int, int]) -> list[Any]:
    """What a kernel gets for one argument; the memory that comes with it is entered into `storages`."""
    if kind.startswith("tensordesc"):
        box = next(boxes, None)
        if box is None or value.padding != "zero":
            raise NotImplementedError(
                "the emulator takes descriptors as tensor maps alone, with zeros beyond the tensor"
            )
        address = _address(value.base, storages)
        sizes = box["block_size"], box["elem_size"], SWIZZLES[box["swizzle"]]
        return [tensor_map(address, value.shape, value.strides, *sizes), *value.shape, *value.strides]
    if kind.startswith("*"):
        return [0 if value is None else _address(value, storages)]
    return [value]


def _address(tensor: torch.Tensor, storages: dict[int, int]) -> int:
    if tensor.device.type != "cpu":
        raise ValueError(f"the emulator takes tensors on the CPU, not on {tensor.device}")
    storage = tensor.untyped_storage()
    if storage.nbytes():
        storages[storage.data_ptr()] = storage.data_ptr() + storage.nbytes()
    return tensor.data_ptr()


def _without_ptxas(*call: Any) -> tuple[str, str] | None:
    """Triton's hook into the stages of its compiler; called without arguments for a key of its cache."""
    if not call:
        return "emulator", "emulator"
    stages = call[1]
    stages["cubin"] = lambda ptx, metadata: ptx.encode()
    return None


def _replace(before: Callable[..., int], after: Callable[..., int]) -> None:
    """Exchange `capability` wherever it was imported, also by modules that were first imported on the emulated chip."""
    for name, module in list(sys.modules.items()):
        if name.startswith("vidsparse") and vars(module).get("capability") is before:
            module.capability = after  # type: ignore[attr-defined]


@contextmanager
def emulated(capability: int, order: Order = LATE, edit: Callable[[str], str] = str) -> Iterator[Chip]:
    """Let Triton's kernels run on a chip that is not there, on CPU tensors, and vidsparse take CPU tensors for its own.

    Args:
        capability: 80, 86, 89, 90 or 120.
        order: when asynchronous copies and products are done.
        edit: changes a kernel's PTX before it is executed.

    Yields:
        The chip, which counts launches.

    Raises:
        RuntimeError: no C++ compiler, or kernels that were defined for Triton's interpreter.
        EmulationError, NotImplementedError: from a launch that breaks a rule, or has an unknown instruction.
    """
    if capability not in SHARED_MEMORY:
        raise ValueError(f"capability {capability} is unknown; choose one of {', '.join(map(str, SHARED_MEMORY))}")
    if triton.knobs.runtime.interpret:
        raise RuntimeError("kernels are made for Triton's interpreter: unset TRITON_INTERPRET before triton comes")
    from vidsparse_kernels.gpu import device

    chip = Chip(capability, order, edit)
    found = device.capability

    def emulated_capability(device: torch.device) -> int:
        return capability

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(triton.runtime.driver, "_active", chip))
        stack.enter_context(mock.patch.object(device, "INTERPRETED", True))  # so CPU tensors are welcome
        stack.callback(_replace, emulated_capability, found)
        _replace(found, emulated_capability)
        for knobs in (triton.knobs.cache, triton.knobs.runtime, triton.knobs.compilation):
            stack.enter_context(knobs.scope())
        # Apart from Triton's own: what stands there as a binary is none.
        triton.knobs.cache.dir = str(core.cache_folder() / "triton")
        triton.knobs.compilation.store_binary_only = True
        triton.knobs.runtime.add_stages_inspection_hook = _without_ptxas
        yield chip
