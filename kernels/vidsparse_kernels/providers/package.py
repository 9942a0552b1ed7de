"""A package of others that has attention kernels: which chips it serves, and why it cannot be used here."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch


@dataclass(frozen=True)
class Package:
    """A package behind one `impl`.

    Attributes:
        impl: the name of the implementation.
        module: the module with the functions.
        installs: what `pip install` takes.
        capabilities: the major compute capabilities of the chips that it has kernels for.
    """

    impl: str
    module: str
    installs: str
    capabilities: tuple[int, ...]

    def lacks(self, device: torch.device) -> str | None:
        """Why no kernel runs on this device, in words that complete "impl=..."; None if they run."""
        if device.type != "cuda":
            return f"needs tensors on a CUDA device, these are on {device}"
        if (major := torch.cuda.get_device_capability(device)[0]) not in self.capabilities:
            served = ", ".join(map(str, self.capabilities))
            return f"needs a major compute capability of {served}; {torch.cuda.get_device_name(device)} has {major}"
        found = load(self.module)
        return self._missing(found) if isinstance(found, Exception) else None

    def functions(self) -> Any:
        """The module with the functions.

        Raises:
            NotImplementedError: it cannot be imported.
        """
        found = load(self.module)
        if isinstance(found, Exception):
            raise NotImplementedError(f"impl={self.impl!r} {self._missing(found)}; use impl='auto'")
        return found

    def _missing(self, error: Exception) -> str:
        return f"needs the package {self.installs} ({type(error).__name__}: {error})"


@lru_cache(maxsize=8)
def load(module: str) -> ModuleType | Exception:
    """A module, or the error that importing it raised."""
    try:
        return import_module(module)
    except Exception as error:  # CUDA's own libraries raise many classes where they cannot be loaded
        return error
