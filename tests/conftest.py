"""Fixtures for all tests: no network, one thread, a fixed seed, uninitialised memory that shows when it is read.

Where there is no GPU, Triton's kernels run in its interpreter.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of torch, here and in subprocesses: workers share the processors
os.environ["HF_HUB_OFFLINE"] = "1"  # huggingface_hub reads it once, when it is imported

import gc
import importlib.util
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import machine_code
import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it where a kernel is defined
    if importlib.util.find_spec("triton"):
        import interpreter_bf16
        import interpreter_speed

        interpreter_bf16.install()
        interpreter_speed.install()
torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    """Let tests of machine code run where Triton compiles."""
    config.pluginmanager.register(machine_code.MachineCode())


def pytest_collection_finish() -> None:
    """Let no collection of garbage look at what was imported: most of what there is, a third of a second each time."""
    gc.collect()  # what is garbage by then would stay for ever
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where CUDA is missing; refuse names that differ from one process to the next."""
    if addresses := [item.nodeid for item in items if " at 0x" in item.nodeid]:
        raise pytest.UsageError(f"give the parameters of {addresses[0]} ids: pytest-xdist compares them by name")
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def seed() -> Iterator[None]:
    """Give every test the same random numbers, whatever ran before it, and leave the global generator as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture(autouse=True)
def accelerate_forgets() -> Iterator[None]:
    """Let no training find the settings of an earlier one: accelerate keeps them for the whole process."""
    yield
    if state := sys.modules.get("accelerate.state"):
        state.AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which trainings find what earlier ones have encoded."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def full_disk() -> Callable[[], AbstractContextManager[None]]:
    """A context in which no file grows beyond 10 kB: writing fails in the middle, as on a disk that is full."""

    @contextmanager
    def limited() -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention as it is, without Dynamo, which takes seconds for each shape."""
    from torch.nn.attention import flex_attention

    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True, raising=False)


@pytest.fixture
def large_steps() -> Iterator[None]:
    """In Triton's interpreter, where every step costs the same, let kernels take larger ones than on a chip."""
    if torch.cuda.is_available():
        yield
        return
    from vidsparse_kernels.gpu.configs import KERNELS, Config, trying

    with ExitStack() as tried:
        for kernel in KERNELS:
            tried.enter_context(trying(kernel, Config(64, 4, 1)))
        yield


@pytest.fixture
def poison_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill what `torch.empty`, `empty_like` and `Tensor.new_empty` return with NaN, if it is floating point or complex.

    A kernel that reads what it has not written, or that leaves a part of its output unwritten, then returns NaN
    instead of whatever the allocator had there, which is often zero. Integer tensors have no NaN and stay as they are.
    """

    def poisoned(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def filled(*args: Any, **kwargs: Any) -> torch.Tensor:
            tensor = allocate(*args, **kwargs)
            if tensor.is_floating_point() or tensor.is_complex():
                with torch.no_grad():
                    tensor.fill_(float("nan"))
            return tensor

        return filled

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))
