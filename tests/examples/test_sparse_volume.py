"""The example of a sphere's shell runs, and its output in neighbouring tiles is near the dense one."""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any

import pytest
import torch
from pages import ROOT

from vidsparse import SparseVolume, VideoGrid


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "examples")
    return import_module("sparse_volume")


def test_it_prints_what_it_measured(example: Any, capsys: pytest.CaptureFixture[str]) -> None:
    example.main(["--side", "13", "--heads", "1", "--density", "0.5"])
    printed = capsys.readouterr().out
    assert (
        f"{int(example.shell(13).sum())} of 2197 voxels" in printed and "back in the cube: (1, 2197, 1, 64)" in printed
    )
    errors = [float(x) for x in re.findall(r"relative error (\S+)", printed)]
    assert len(errors) == 2 and all(0 < error < 0.1 for error in errors)


def test_near_voxels_are_alike(example: Any) -> None:
    volume = SparseVolume.from_mask(VideoGrid(9, 9, 9), example.shell(9))
    x = example.waves(volume, 2, 64)
    assert x.shape == (1, volume.tokens, 2, 64)
    products = x[0, :, 0] @ x[0, :, 0].T
    place = torch.stack(torch.unravel_index(volume.positions, (9, 9, 9)), dim=1).double()
    apart = torch.cdist(place, place)
    assert products[apart == 0].mean() > products[apart == 1].mean() > products[apart > 4].mean()
