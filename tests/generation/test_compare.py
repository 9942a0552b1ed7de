"""Comparing a dense and a sparse video."""

from __future__ import annotations

import numpy as np
import pytest

from vidsparse.generation.compare import similarity


def test_similarity() -> None:
    rng = np.random.default_rng(0)
    first = rng.random((3, 16, 20, 3), dtype=np.float32)
    assert similarity(first, first) == (None, 1.0)
    second = first.copy()
    second[1] = second[1] * 0.5
    psnr, ssim = similarity(first, second)
    assert psnr == pytest.approx(-10 * np.log10(((first - second) ** 2).mean()), rel=1e-4)
    alone = [similarity(first[i : i + 1], second[i : i + 1])[1] for i in range(3)]
    assert ssim == pytest.approx(sum(alone) / 3) and alone[0] == 1.0 > alone[1]
