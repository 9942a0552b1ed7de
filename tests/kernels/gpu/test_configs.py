"""The table of launches: every call finds a row, or is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vidsparse import BlockMap, VideoGrid, bench

pytest.importorskip("triton")
from vidsparse_kernels.gpu import configs, forward, key_gradient, launch, operator, query_gradient
from vidsparse_kernels.layout import TileLayout, Tiling

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize(
    ("capability", "family"),
    [(80, 80), (86, 89), (87, 80), (89, 89), (90, 90), (100, 100), (103, 100), (110, 89), (120, 89)],
)
def test_chips_belong_to_a_family(capability: int, family: int) -> None:
    assert configs.family(capability) == family


def test_every_call_finds_a_configuration() -> None:
    for capability in (80, 86, 89, 90, 100, 103, 110, 120, 150):
        for kernel in configs.KERNELS:
            for itemsize in (2, 4):
                for head_dim in launch.HEADS:
                    for held in operator.VOLUMES:
                        config = configs.choose(capability, kernel, itemsize, head_dim, held)
                        if config is None:
                            assert (itemsize, held) == (4, 128) and head_dim > 64
                        else:
                            assert config.step in (16, 32, 64, 128) and config.warps in (4, 8)


def test_the_next_head_dim_that_is_no_less_lends_its_row() -> None:
    assert configs.choose(90, "forward", 2, 96, 128) == configs.choose(90, "forward", 2, 128, 128)
    assert configs.choose(90, "forward", 2, 32, 64) == configs.choose(90, "forward", 2, 64, 64)


def test_a_step_halves_the_first_axes() -> None:
    assert launch.step_box((2, 8, 8), 128) == (2, 8, 8)
    assert launch.step_box((2, 8, 8), 64) == (1, 8, 8)
    assert launch.step_box((2, 8, 8), 16) == (1, 2, 8)
    assert launch.step_box((1, 8, 8), 128) == (1, 8, 8)
    assert launch.step_box((32, 2, 2), 64) == (16, 2, 2)


@pytest.mark.parametrize("kernel", configs.KERNELS)
def test_launches_that_fail_or_give_other_numbers_are_left_out(
    kernel: configs.Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, values in (("STEPS", (16, 32, 64, 128)), ("WARPS", (4,)), ("STAGES", (1,)), ("REGISTERS", (None,))):
        monkeypatch.setattr(bench, name, values)
    launches: list[configs.Config] = []
    module, name, result = {
        "forward": (forward, "forward_kernel", "out"),
        "query_gradient": (query_gradient, "query_gradient_kernel", "grad_query"),
        "key_gradient": (key_gradient, "key_gradient_kernel", "grad_key"),
    }[kernel]
    right = getattr(module, name)

    class Faulty:
        def __getitem__(self, programs: tuple[int, int]) -> Any:
            def launched(**arguments: Any) -> None:
                config = configs._TRIED.get(kernel)
                if not isinstance(config, configs.Config):
                    return right[programs](**arguments)
                launches.append(config)
                if config.step == 16:
                    raise RuntimeError("PassManager::run failed")
                right[programs](**arguments)
                if config.step == 32:
                    arguments[result].fill_(float("nan"))

            return launched

    monkeypatch.setattr(module, name, Faulty())
    grid = VideoGrid(1, 8, 16)
    block_map = BlockMap.from_dense(torch.ones(2, 2, dtype=torch.bool), grid, (1, 8, 8))
    tensors = bench.inputs(grid.tokens, 1, 32, torch.float32, torch.device(DEVICE))
    found = dict(bench.tune(tensors, block_map, kernel))
    assert [config.step for config in found] == [64] and all(took > 0 for took in found.values())
    assert {config.step for config in launches} == {16, 32, 64}


def test_what_does_not_fit_a_chip_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator, "capability", lambda device: 89)
    large, tile = torch.empty(1, 4, 1, 128, device=DEVICE), (2, 8, 8)

    def layout(tile: tuple[int, int, int]) -> TileLayout:
        return TileLayout(*[Tiling((4, 8, 8), tile)] * 2)

    reason = operator.unsupported(large, layout(tile))
    assert reason == "takes torch.float32 with head_dim 128 in tiles of 64 tokens on this chip, not the tile (2, 8, 8)"
    assert operator.unsupported(large, layout((1, 8, 8))) is None
    assert operator.unsupported(large.half(), layout(tile)) is None
