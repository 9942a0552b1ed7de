"""`LearnedGate`: what it keeps, for which models, and in which forms it travels."""

from __future__ import annotations

import copy
import math
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gates import HEADER, gate_folder, random_weights

from vidsparse import Context, LearnedGate, PerHead, Radial, StepSchedule, TopBlocks, VideoGrid, plot
from vidsparse.patterns.gate_file import save_gate
from vidsparse.patterns.gate_weights import GateWeights, Pooled
from vidsparse.patterns.names import build_pattern, change_pattern
from vidsparse.serialize import from_data, to_data

HERE = Context(layers=2, heads=3)


def test_the_map_by_hand(tmp_path: Path) -> None:
    """Four tokens in tiles of one: the gate turns the sign of keys, so that the least key is the best."""
    header = replace(HEADER, layers=1, heads=1, head_dim=1, tile=(1, 1, 1))
    save_gate(tmp_path / "gate", header, [GateWeights(torch.ones(1, 1, 1), torch.tensor([[[-1.0, 0.0, 0.0]]]))])
    query, key = torch.tensor([[1.0, 1, 1, -1], [0, 3, -2, 1]]).reshape(2, 1, 4, 1, 1)
    found = LearnedGate(str(tmp_path / "gate"), density=0.5).select(query, key, VideoGrid(1, 1, 4), Context())
    # Two tiles a row: the own one, and the one with the least key; for the last query, with the largest.
    assert found.to_dense()[0, 0].int().tolist() == [[1, 0, 1, 0], [0, 1, 1, 0], [1, 0, 1, 0], [0, 1, 0, 1]]


@pytest.mark.parametrize("grid", [VideoGrid(3, 5, 7), VideoGrid(1, 4, 4, 2, 3), VideoGrid(5, 3, 2, 0, 1)])
@pytest.mark.parametrize("amount", [{"density": 0.3}, {"density": 1.0}, {"threshold": 0.15}, {"threshold": 1.0}])
def test_any_grid_keeps_the_best_tiles_and_the_own(tmp_path: Path, grid: VideoGrid, amount: dict[str, float]) -> None:
    pattern, tile = LearnedGate(gate_folder(tmp_path), **amount, tile=(1, 2, 2)), (1, 2, 2)
    query, key = torch.randn(2, 2, grid.tokens, 3, 8)
    found = pattern.select(query, key, grid, replace(HERE, layer=1)).to_dense()
    scores = random_weights(3, 8, 1).scores(Pooled.of(query, key, grid, tile))
    tiles = math.prod(grid.tiles(tile))
    for row in range(tiles):
        ranked = scores[:, :, row].clone()
        ranked[..., row] = math.inf
        if "density" in amount:
            best = ranked.topk(max(1, round(amount["density"] * tiles)), dim=-1).indices
            expected = torch.zeros_like(ranked, dtype=torch.bool).scatter(-1, best, True)
        else:
            expected = scores[:, :, row].softmax(dim=-1) >= amount["threshold"]
            expected |= ranked == math.inf
            # The own tile may be the only one; else the highest stays in any case.
        assert (found[:, :, row] & expected).sum() == expected.sum()
        if "density" in amount:
            assert torch.equal(found[:, :, row], expected)
    planned = pattern.plan(grid, HERE)
    assert planned.grid == grid and 0 < float(planned.density) <= 1


def test_an_untrained_gate_is_top_blocks(tmp_path: Path) -> None:
    save_gate(tmp_path / "gate", HEADER, [GateWeights.untrained(3, 8) for _ in range(2)])
    grid = VideoGrid(4, 6, 6, 3, 0)
    query, key = torch.randn(2, 1, grid.tokens, 3, 8)
    found = LearnedGate(str(tmp_path / "gate"), density=0.3, tile=(2, 2, 2)).select(query, key, grid, HERE)
    assert found == TopBlocks(density=0.3, tile=(2, 2, 2)).select(query, key, grid, HERE)


def test_heads_of_one_gpu_have_their_own_weights(tmp_path: Path) -> None:
    pattern, grid = LearnedGate(gate_folder(tmp_path), density=0.3, tile=(1, 2, 2)), VideoGrid(3, 4, 4)
    query, key = torch.randn(2, 1, grid.tokens, 3, 8)
    whole = pattern.select(query, key, grid, HERE).to_dense()
    part = pattern.select(query[:, :, [2, 0]], key[:, :, [2, 0]], grid, replace(HERE, local_heads=(2, 0)))
    assert torch.equal(part.to_dense(), whole[:, [2, 0]])


def test_the_tile_is_that_of_the_training(tmp_path: Path) -> None:
    grid = VideoGrid(4, 8, 8)
    trained = gate_folder(tmp_path / "a", header=replace(HEADER, tile=(1, 2, 4)))
    assert LearnedGate(trained, density=0.2).tile_for(grid) == (1, 2, 4)
    assert LearnedGate(trained, density=0.2, tile=(2, 2, 2)).tile_for(grid) == (2, 2, 2)
    assert LearnedGate(gate_folder(tmp_path / "b"), density=0.2).tile_for(grid) == grid.best_tile()


def test_another_model_is_refused(tmp_path: Path) -> None:
    pattern = LearnedGate(gate_folder(tmp_path), density=0.2)
    pattern.check_model(2, 3)
    pattern.check_model(2, None)
    with pytest.raises(ValueError, match=r"for 2 layers of 3 heads, the model has 30 layers of 12 heads; train one"):
        pattern.check_model(30, 12)
    with pytest.raises(ValueError, match="let all heads of a layer have it"):
        PerHead((Radial(0.2), pattern), heads=(0, 1, 1)).check_model(2, 3)
    query = torch.zeros(1, 16, 3, 4)
    with pytest.raises(ValueError, match=r"of 3 heads of 8 channels, and this is one of 2 layers of 3 heads of 4"):
        pattern.select(query, query, VideoGrid(1, 4, 4), HERE)


def test_fields_are_checked() -> None:
    with pytest.raises(ValueError, match="give one of density and threshold"):
        LearnedGate("gate")
    with pytest.raises(ValueError, match="give one of density and threshold"):
        LearnedGate("gate", density=0.2, threshold=0.1)
    with pytest.raises(ValueError, match="gate=3 must be the name of a file or folder"):
        LearnedGate(3, density=0.2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"density=1.5 must be in \(0, 1\]"):
        LearnedGate("gate", density=1.5)
    with pytest.raises(ValueError, match="threshold"):
        LearnedGate("gate", threshold=0.0)


def test_it_travels_as_words_data_and_bytes(tmp_path: Path) -> None:
    folder = gate_folder(tmp_path)
    pattern = LearnedGate(folder, density=0.3)
    assert build_pattern("learned-gate", 0.3, [f"gate={folder}"]) == pattern
    assert build_pattern("learned-gate", None, [f"gate={folder}"]).density == 0.2
    threshold = build_pattern("learned-gate", None, [f"gate={folder}", "threshold=0.01"])
    assert threshold == LearnedGate(folder, threshold=0.01) and change_pattern(threshold, 0.3) == pattern
    schedule = StepSchedule(pattern, dense_steps=2)
    assert from_data(to_data(schedule)) == schedule and pickle.loads(pickle.dumps(schedule)) == schedule
    assert copy.deepcopy(pattern) == pattern and from_data({"class": "LearnedGate", "gate": "gone", "density": 0.2})
    assert "LearnedGate" in pattern._repr_html_()
    assert plot(pattern.plan(VideoGrid(3, 8, 8), HERE), grid=VideoGrid(3, 8, 8)) is not None
