"""The peak of memory: of what was taken meanwhile, and of nothing before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vidsparse.generation import peak_memory
from vidsparse.generation.peak_memory import PeakMemory

CPU, SIZE = torch.device("cpu"), 64 * 2**20


def test_a_peak_is_of_its_own_time() -> None:
    torch.ones(4 * SIZE, dtype=torch.uint8)  # before: must not count
    idle = PeakMemory(CPU)
    before = idle.bytes()
    if before is None:
        pytest.skip("this system does not tell the peak of a process")
    busy = PeakMemory(CPU)
    torch.ones(SIZE, dtype=torch.uint8)
    after = busy.bytes()
    assert after is not None and SIZE / 2 < after - before < 2 * SIZE


def test_where_a_system_does_not_tell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(peak_memory, "PROCESS", tmp_path / "none")
    assert PeakMemory(CPU).bytes() is None
    assert PeakMemory(torch.device("meta")).bytes() is None
