"""How far a video is from another one."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from vidsparse.generation.metrics import WEIGHTS, Lpips, difference


def video(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random((*shape, 3), dtype=np.float32)


def test_psnr_ssim_and_the_worst_frame() -> None:
    first = video(3, 16, 20)
    second = first.copy()
    second[1] *= 0.5
    second[2] *= 0.9
    found = difference(first, second)
    assert found.psnr == pytest.approx(-10 * np.log10(((first - second) ** 2).mean()), rel=1e-4)
    alone = [difference(first[i : i + 1], second[i : i + 1]) for i in range(3)]
    assert found.frame_ssim == pytest.approx([one.ssim for one in alone]) and alone[0].ssim == 1 > alone[1].ssim
    assert found.ssim == pytest.approx(sum(found.frame_ssim) / 3)
    assert found.frame_psnr == (None, pytest.approx(alone[1].psnr), pytest.approx(alone[2].psnr))
    assert found.worst_frame == 1 and found.lpips is None and found.ms_ssim is None


def test_identical_videos_have_no_worst_frame() -> None:
    found = difference(video(2, 16, 16), video(2, 16, 16))
    assert (found.psnr, found.ssim, found.flicker, found.worst_frame) == (None, 1.0, 0.0, None)
    assert found.frame_psnr == (None, None)


def test_flicker_is_the_change_that_one_video_has_and_the_other_lacks() -> None:
    still = np.full((5, 16, 16, 3), 0.5, np.float32)
    flickers = still.copy()
    flickers[1::2] += 0.1
    assert difference(still, flickers).flicker == pytest.approx(0.1, rel=1e-5)
    assert difference(still, still + 0.1).flicker == pytest.approx(0, abs=1e-6), "darker throughout is no flicker"
    assert difference(still[:1], flickers[:1]).flicker is None


def test_ms_ssim_needs_room_for_its_scales() -> None:
    assert difference(video(1, 175, 180), video(1, 175, 180) * 0.5).ms_ssim is None
    first = video(2, 176, 176)
    found = difference(first, first * 0.5)
    assert found.ms_ssim is not None and found.ssim < found.ms_ssim < 1
    assert difference(first, first).ms_ssim == pytest.approx(1)


def test_two_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"two sizes: \(2, 16, 16\) and \(3, 16, 16\)"):
        difference(video(2, 16, 16), video(3, 16, 16))


def test_lpips_says_what_is_missing_and_fetches_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    with pytest.raises(FileNotFoundError, match=rf"{WEIGHTS}, which vidsparse does not download; fetch them from http"):
        Lpips.check()
    monkeypatch.setattr("vidsparse.generation.metrics.import_module", broken)
    with pytest.raises(ImportError, match="does not fit this torch: operator torchvision::nms"):
        Lpips()


def broken(name: str) -> ModuleType:
    raise RuntimeError("operator torchvision::nms does not exist")


def test_lpips_without_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidsparse.generation.metrics.import_module", missing)
    with pytest.raises(ImportError, match=r"pip install 'vidsparse\[metrics\]'"):
        Lpips.check()


def missing(name: str) -> ModuleType:
    raise ModuleNotFoundError(name)
