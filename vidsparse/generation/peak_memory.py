"""The most memory that a part of a program takes."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

import torch

PROCESS = Path("/proc/self")


class PeakMemory:
    """Measures from when it is made.

    On a CUDA device it measures what PyTorch has allocated there. Elsewhere it measures the resident memory of the
    whole process, which Linux alone tells.
    """

    def __init__(self, device: torch.device):
        """Forget earlier peaks of the device, or of the process."""
        self._device, self._known = device, device.type == "cuda"
        if self._known:
            torch.cuda.reset_peak_memory_stats(device)
        elif device.type == "cpu":
            with suppress(OSError):  # another system, or a sandbox
                (PROCESS / "clear_refs").write_text("5")  # 5 resets the peak, see proc_pid_clear_refs(5)
                self._known = True

    def bytes(self) -> int | None:
        """The peak until now; None where it cannot be measured."""
        if not self._known:
            return None
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        found = re.search(r"^VmHWM:\s+(\d+) kB$", (PROCESS / "status").read_text(), re.MULTILINE)
        return None if found is None else int(found[1]) * 1024
