"""Run tests marked `machine_code` in processes where Triton compiles: in pytest's own, kernels are interpreted.

All marked tests of a session are handed out when the first is due, so they run side by side. Such a test is a module's
function; it takes parameters, no fixtures.
"""

from __future__ import annotations

import importlib.util
import os
import pickle
import sys
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest

PROCESSES = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2  # each worker of pytest-xdist has its own


def _start() -> None:
    import torch

    torch.set_num_threads(1)


@cache
def _module(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses and pickle look it up
    spec.loader.exec_module(module)
    return module


def _call(name: str, path: Path, function: str, parameters: bytes) -> None:
    import torch

    torch.manual_seed(0)
    test = getattr(_module(name, path), function)
    test(**pickle.loads(parameters))  # after the module: its own classes may be among them


class MachineCode:
    """The plugin: its processes, and the results that are still to come."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None
        self._results: dict[str, Future[None]] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> bool | None:
        """Wait for the test's result from another process."""
        if pyfuncitem.get_closest_marker("machine_code") is None:
            return None
        if pyfuncitem.nodeid not in self._results:
            distributed = hasattr(pyfuncitem.config, "workerinput")  # pytest-xdist runs others elsewhere
            self._hand_out([pyfuncitem] if distributed else pyfuncitem.session.items)
        self._results[pyfuncitem.nodeid].result()
        return True

    def _hand_out(self, items: Sequence[pytest.Item]) -> None:
        from emulator import core

        if core.compiler() is None:
            pytest.skip("needs a C++ compiler: the emulator's core is built with g++ or clang++")
        core.build()
        self._pool = self._pool or ProcessPoolExecutor(PROCESSES, get_context("spawn"), _start)
        with mock.patch.dict(os.environ):
            os.environ.pop("TRITON_INTERPRET", None)
            for item in items:
                if isinstance(item, pytest.Function) and item.get_closest_marker("machine_code"):
                    parameters = item.callspec.params if hasattr(item, "callspec") else {}
                    call = item.module.__name__, item.path, item.function.__name__, pickle.dumps(parameters)
                    self._results[item.nodeid] = self._pool.submit(_call, *call)

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(self) -> Generator[None, Any, Any]:
        """End the processes, also where tests were left out."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        return (yield)
