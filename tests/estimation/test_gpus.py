"""GPUs by name."""

from __future__ import annotations

import pytest

from vidsparse.estimation.gpus import GPUS, find_gpu


@pytest.mark.parametrize("name", ["RTX 4090", "rtx4090", "4090", "NVIDIA RTX-4090"])
def test_a_gpu_is_found_by_what_it_is_called(name: str) -> None:
    assert find_gpu(name).name == "RTX 4090"


def test_every_gpu_has_a_source_and_is_faster_at_products_than_at_memory() -> None:
    for gpu in GPUS:
        assert gpu.source and gpu.teraflops > 50 * gpu.terabytes and find_gpu(gpu.name) is gpu


def test_a_roofline_is_the_longer_of_computing_and_moving() -> None:
    gpu = find_gpu("H100")
    assert gpu.seconds(989e12, 1.0) == 2.0 and gpu.seconds(989e12, 1.0, utilization=1.0) == 1.0
    assert gpu.seconds(1.0, 6.7e12) == 2.0


def test_an_unknown_gpu_is_refused() -> None:
    with pytest.raises(ValueError, match=r"GPU 'TPU' is unknown; choose one of H100, H200, "):
        find_gpu("TPU")
