"""Attention among some voxels of a grid: against dense attention under a mask that is built voxel by voxel."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from against_float64 import assert_close, plain, run
from blocks import listed

from vidsparse import (
    BlockMap,
    Context,
    Dense,
    HeadGroup,
    Radial,
    SlidingTile,
    SparseVolume,
    TopBlocks,
    VideoGrid,
    VideoSparse,
    sparse_attention,
)

GRID = VideoGrid(5, 7, 11)
TEXT = VideoGrid(3, 9, 10, prefix=3, suffix=4)
TILE = (2, 4, 4)
HEADS, HEAD_DIM = 3, 16


def shell(grid: VideoGrid) -> torch.Tensor:
    """The voxels between two spheres: most tiles are cut, some are empty."""
    axes = (torch.linspace(-1, 1, side) if side > 1 else torch.zeros(1) for side in grid.view)
    radius = torch.stack(torch.meshgrid(*axes, indexing="ij")).norm(dim=0)
    return (radius > 0.55) & (radius < 1)


def random(grid: VideoGrid, share: float) -> torch.Tensor:
    return torch.rand(grid.view, generator=torch.Generator().manual_seed(5)) < share


def one(grid: VideoGrid) -> torch.Tensor:
    valid = torch.zeros(grid.view, dtype=torch.bool)
    valid[-1, -1, -1] = True
    return valid


def corners(grid: VideoGrid) -> torch.Tensor:
    """Two voxels in opposite corners: all tiles between them are empty."""
    valid = one(grid)
    valid[0, 0, 0] = True
    return valid


def kept_pairs(grid: VideoGrid, heads: int = 1, batch: int = 1, key_tile: tuple[int, int, int] = TILE) -> BlockMap:
    rows, columns = (math.prod(grid.tiles(tile)) for tile in (TILE, key_tile))
    kept = torch.rand(batch, heads, rows, columns, generator=torch.Generator().manual_seed(3)) < 0.5
    return BlockMap.from_dense(kept, grid, TILE, key_tile)


VOLUMES = {
    "shell": (GRID, shell(GRID)),
    "random": (GRID, random(GRID, 0.3)),
    "few": (GRID, random(GRID, 0.02)),
    "one-voxel": (GRID, one(GRID)),
    "corners": (GRID, corners(GRID)),
    "all": (GRID, torch.ones(GRID.view, dtype=torch.bool)),
    "text": (TEXT, random(TEXT, 0.2)),
    "one-frame": (VideoGrid(1, 13, 17), shell(VideoGrid(1, 13, 17))),
}
MAPS = {
    "radial": lambda grid: Radial(density=0.4, tile=TILE).plan(grid),
    "sliding": lambda grid: SlidingTile(window=(3, 5, 5), tile=TILE).plan(grid),
    "each-head": lambda grid: kept_pairs(grid, heads=HEADS),
    "each-sample-other-key-tile": lambda grid: kept_pairs(grid, batch=2, heads=HEADS, key_tile=(1, 2, 4)),
}
every_volume = pytest.mark.parametrize("name", VOLUMES)
every_map = pytest.mark.parametrize("kind", MAPS)


def expected_mask(volume: SparseVolume, block_map: BlockMap) -> torch.Tensor:
    """bool [B|1, H|1, tokens, tokens]: the map of the whole grid expanded to all voxels, and then cut."""
    grid = volume.grid
    end = torch.arange(grid.tokens - grid.suffix, grid.tokens)
    tokens = torch.cat((torch.arange(grid.prefix), volume.positions + grid.prefix, end))
    return block_map.token_mask()[:, :, tokens][..., tokens]


def operands(volume: SparseVolume, count: int = 4) -> list[torch.Tensor]:
    return [torch.randn(2, volume.tokens, HEADS, HEAD_DIM) for _ in range(count)]


@pytest.mark.usefixtures("poison_empty")
@every_map
@every_volume
def test_against_float64_under_the_mask_of_voxels(name: str, kind: str) -> None:
    check_against_float64(name, kind, torch.float32)


@pytest.mark.usefixtures("poison_empty")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@every_map
@pytest.mark.parametrize("name", ["shell", "text"])
def test_low_precision_against_float64(name: str, kind: str, dtype: torch.dtype) -> None:
    check_against_float64(name, kind, dtype)


def check_against_float64(name: str, kind: str, dtype: torch.dtype) -> None:
    """Output, log-sum-exp and the gradients of query, key and value; rows that see no key are 0."""
    volume, whole = SparseVolume.from_mask(*VOLUMES[name]), MAPS[kind](VOLUMES[name][0])
    block_map, mask = volume.restrict(whole), expected_mask(volume, whole)
    assert torch.equal(block_map.token_mask(), mask)
    tensors = [x.to(dtype) for x in operands(volume)]

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return sparse_attention(q, k, v, block_map, return_lse=True)

    expected = run(plain(mask), tensors, torch.float64)
    assert_close(run(attention, tensors, dtype), expected, run(plain(mask), tensors, dtype), dtype)


@pytest.mark.parametrize("impl", ["cpu", "reference", "flex"])
@every_volume
def test_every_implementation_for_a_cpu(name: str, impl: str) -> None:
    volume, whole = SparseVolume.from_mask(*VOLUMES[name]), kept_pairs(VOLUMES[name][0], heads=HEADS)
    q, k, v, _ = (x.double() for x in operands(volume))
    found = sparse_attention(q, k, v, volume.restrict(whole), impl=impl)
    right, _ = plain(expected_mask(volume, whole))(q, k, v)
    torch.testing.assert_close(found, right, rtol=0, atol=1e-12)


def test_gradients_by_finite_differences() -> None:
    grid = VideoGrid(2, 3, 4)
    volume = SparseVolume.from_mask(grid, random(grid, 0.4))
    block_map = volume.restrict(Radial(density=0.5, tile=(1, 2, 2)).plan(grid))
    q, k, v = (torch.randn(1, volume.tokens, 1, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    assert torch.autograd.gradcheck(lambda q, k, v: sparse_attention(q, k, v, block_map), (q, k, v))


@every_map
@pytest.mark.parametrize("name", ["shell", "text"])
def test_all_voxels_are_the_ordinary_call(name: str, kind: str) -> None:
    grid = VOLUMES[name][0]
    whole, volume = MAPS[kind](grid), SparseVolume.from_mask(grid, torch.ones(grid.view, dtype=torch.bool))
    block_map = volume.restrict(whole)
    assert torch.equal(block_map.to_dense(), whole.to_dense())
    assert (block_map.density, block_map.token_density) == (whole.density, whole.token_density)
    inputs = operands(volume, 3)
    assert torch.equal(sparse_attention(*inputs, block_map), sparse_attention(*inputs, whole))


def test_text_of_different_lengths() -> None:
    grid, valid = VOLUMES["text"]
    volume, whole = SparseVolume.from_mask(grid, valid), kept_pairs(grid)
    lengths = torch.tensor([6, 1])
    q, k, v, _ = (x.double() for x in operands(volume))
    mask = expected_mask(volume, whole).repeat(2, 1, 1, 1)
    extra = torch.cat((torch.arange(3), torch.arange(volume.tokens - 4, volume.tokens)))
    for sample, length in zip(mask, lengths.tolist(), strict=True):
        sample[..., extra[length:]] = False
    right, _ = plain(mask)(q, k, v)
    for impl in ("cpu", "reference", "flex"):
        found = sparse_attention(q, k, v, volume.restrict(whole), extra_valid=lengths, impl=impl)
        torch.testing.assert_close(found, right, rtol=0, atol=1e-12)


@every_volume
def test_only_tiles_with_a_voxel_have_a_number(name: str) -> None:
    grid, valid = VOLUMES[name]
    volume, whole = SparseVolume.from_mask(grid, valid), kept_pairs(grid)
    block_map = volume.restrict(whole)
    boxes = [part for row in valid.split(TILE[0]) for part in row.split(TILE[1], dim=1)]
    sizes = [int(box.sum()) for part in boxes for box in part.split(TILE[2], dim=2)]
    assert block_map.layout.query.tile_sizes().tolist() == [n for n in sizes if n]
    alive = torch.tensor(sizes) > 0
    assert torch.equal(
        listed(block_map.counts, block_map.indices, int(alive.sum())), whole.to_dense()[..., alive, :][..., alive]
    )


@every_volume
def test_densities_count_pairs_of_voxels(name: str) -> None:
    volume, whole = SparseVolume.from_mask(*VOLUMES[name]), kept_pairs(VOLUMES[name][0], heads=HEADS)
    block_map = volume.restrict(whole)
    assert block_map.token_density == pytest.approx(float(expected_mask(volume, whole).double().mean()))
    assert block_map.density == pytest.approx(float(block_map.to_dense().double().mean()))


def test_coordinates_keep_their_order() -> None:
    grid, valid = VOLUMES["text"]
    ordered = SparseVolume.from_mask(grid, valid)
    places = valid.nonzero()
    assert SparseVolume.from_coordinates(grid, places) == ordered
    shuffle = torch.randperm(len(places))
    volume = SparseVolume.from_coordinates(grid, places[shuffle].int())
    assert volume != ordered and hash(volume) == hash(ordered)
    whole, x = kept_pairs(grid), torch.randn(3, 2, grid.tokens, HEADS, HEAD_DIM, dtype=torch.float64)
    outs = [v.scatter(sparse_attention(*(v.gather(part) for part in x), v.restrict(whole))) for v in (volume, ordered)]
    torch.testing.assert_close(*outs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["text", "shell"])
def test_gather_and_scatter_are_inverse_and_pass_gradients(name: str) -> None:
    grid, valid = VOLUMES[name]
    volume = SparseVolume.from_mask(grid, valid)
    dense = torch.randn(2, grid.tokens, 3, requires_grad=True)
    token = torch.cat((torch.ones(grid.prefix), valid.flatten().float(), torch.ones(grid.suffix)))[:, None]
    some = volume.gather(dense)
    assert some.shape == (2, volume.tokens, 3) and volume.tokens == int(token.sum())
    back = volume.scatter(some)
    assert torch.equal(back, dense * token)
    (gradient,) = torch.autograd.grad(back, dense, torch.ones_like(back))
    assert torch.equal(gradient, token.expand_as(dense))


def test_what_is_made_in_inference_mode_serves_a_training() -> None:
    grid = VideoGrid(2, 4, 5)
    with torch.inference_mode():
        volume = SparseVolume.from_mask(grid, random(grid, 0.4))
        block_map = volume.restrict(Radial(density=0.5, tile=(1, 2, 2)).plan(grid))
        volume.gather(torch.zeros(1, grid.tokens, 1))
    x = torch.randn(1, grid.tokens, 2, 16, requires_grad=True)
    some = volume.gather(x)
    volume.scatter(sparse_attention(some, some, some, block_map)).sum().backward()
    assert x.grad is not None and bool(x.grad.any())


def test_volumes_and_their_maps_copy_and_show_themselves() -> None:
    volume = SparseVolume.from_mask(GRID, shell(GRID))
    block_map = volume.restrict(Radial(density=0.4, tile=TILE).plan(GRID))
    for made in (pickle.loads(pickle.dumps(block_map)), copy.deepcopy(block_map), volume.restrict(kept_pairs(GRID))):
        assert (made == block_map) == bool((made.to_dense() == block_map.to_dense()).all())
        assert made.query_grid == volume
    assert volume != GRID and SparseVolume.from_mask(GRID, one(GRID)) != volume
    assert repr(volume) == f"SparseVolume(VideoGrid(frames=5, height=7, width=11), {int(shell(GRID).sum())} voxels)"
    assert f"grid {int(shell(GRID).sum())} of 5x7x11" in repr(block_map)
    assert "no picture: queries and keys are some voxels of a grid" in block_map._repr_html_()
    assert block_map.transpose().transpose() == block_map


def float_mask() -> torch.Tensor:
    return torch.ones(GRID.view)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: SparseVolume.from_mask(GRID, torch.zeros(GRID.view, dtype=torch.bool)),
            ValueError,
            "no voxel of Video",
        ),
        (lambda: SparseVolume.from_mask(GRID, one(TEXT)), ValueError, r"shape \[3, 9, 10\], expected \[5, 7, 11\]"),
        (lambda: SparseVolume.from_mask(GRID, float_mask()), TypeError, r"bool tensor, got torch.float32; compare it"),
        (lambda: SparseVolume.from_mask(GRID, [[[True]]]), TypeError, "bool tensor, got list"),  # type: ignore[arg-type]
        (lambda: SparseVolume.from_coordinates(GRID, torch.zeros(2, 3)), TypeError, "integers, got torch.float32"),
        (lambda: SparseVolume.from_coordinates(GRID, one(GRID)), TypeError, "goes to SparseVolume.from_mask"),
        (lambda: SparseVolume.from_coordinates(GRID, torch.zeros(0, 3).int()), ValueError, r"\[0, 3\], expected"),
        (lambda: SparseVolume.from_coordinates(GRID, torch.zeros(3, 2).int()), ValueError, r"\[3, 2\], expected"),
        (lambda: SparseVolume.from_coordinates(GRID, torch.tensor([[0, 7, 1]])), ValueError, r"\(0, 7, 1\) is outside"),
        (lambda: SparseVolume.from_coordinates(GRID, torch.zeros(2, 3).int()), ValueError, "occurs twice"),
        (lambda: SparseVolume(GRID, torch.tensor([385])), ValueError, "385 to 385, but .* has voxels 0 to 384"),
        (lambda: SparseVolume(GRID, torch.zeros(0).int()), ValueError, r"positions have shape \[0\]"),
    ],
)
def test_what_is_no_volume_is_refused(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_what_does_not_fit_a_volume_is_refused() -> None:
    volume = SparseVolume.from_mask(GRID, shell(GRID))
    block_map = volume.restrict(Dense(tile=TILE).plan(GRID))
    with pytest.raises(ValueError, match=r"is not a map of VideoGrid\(frames=5, height=7, width=11\)"):
        volume.restrict(Dense(tile=TILE).plan(TEXT))
    with pytest.raises(ValueError, match="is not a map of"):
        volume.restrict(block_map)
    with pytest.raises(TypeError, match="got tuple; of HeadGroups, restrict the block_map of each"):
        volume.restrict((HeadGroup((0,), block_map),))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=rf"but query has {GRID.tokens}"):
        sparse_attention(*torch.randn(3, 1, GRID.tokens, 1, 8), block_map)
    with pytest.raises(ValueError, match=rf"expected \[batch, {GRID.tokens}, ...\]: the tokens of the whole VideoGrid"):
        volume.gather(torch.zeros(1, volume.tokens, 4))
    with pytest.raises(ValueError, match=rf"expected \[batch, {volume.tokens}, ...\]: the tokens of SparseVolume"):
        volume.scatter(torch.zeros(1, GRID.tokens, 4))
    with pytest.raises(ValueError, match=r"tile=.* must be a tuple of three whole numbers"):
        volume.tiling((0, 1, 1))
    with pytest.raises(ValueError, match="the map has no single grid"):
        _ = block_map.grid


def test_patterns_want_the_whole_grid() -> None:
    volume = SparseVolume.from_mask(GRID, shell(GRID))
    with pytest.raises(AttributeError, match=r"pattern for volume\.grid, and pass its map to volume\.restrict"):
        Radial(density=0.3).plan(volume)  # type: ignore[arg-type]
    x = torch.randn(1, volume.tokens, 2, 8)
    with pytest.raises(AttributeError, match=r"pass its map to volume\.restrict"):
        VideoSparse(density=0.3).select(x, x, volume, Context())  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [{}, {"variance": True}, {"neighbours": (0, 1, 1), "sink": 1}], ids=str)
def test_top_blocks_weighs_the_voxels_of_a_tile(settings: dict[str, Any]) -> None:
    """The published scores, tile by tile, of voxels alone; empty tiles take none of the budget."""
    grid, valid = VOLUMES["text"]
    volume, pattern = SparseVolume.from_mask(grid, valid), TopBlocks(density=0.4, tile=TILE, **settings)
    q, k = torch.randn(2, 2, volume.tokens, HEADS, HEAD_DIM)
    block_map = pattern.select(q, k, volume, Context())
    members = volume.tiling(TILE).tile_tokens
    scores = torch.empty(2, HEADS, len(members), len(members))
    for row, queries in enumerate(members):
        for column, keys in enumerate(members):
            a, b = q[:, queries].mean(dim=1), k[:, keys].mean(dim=1)
            score = (a * b).sum(dim=-1) * HEAD_DIM**-0.5 + math.log(len(keys))
            if "variance" in settings:
                spread = k[:, keys].var(dim=1, unbiased=False)
                score += (q[:, queries].square().mean(dim=1) * spread).sum(dim=-1) / HEAD_DIM / 2
            scores[:, :, row, column] = score
    forced = torch.eye(len(members), dtype=torch.bool)
    if "sink" in settings:
        held = volume.held_tiles(TILE)
        place = torch.stack((held // 9, held // 3 % 3, held % 3), dim=1)  # of 2 x 3 x 3 tiles
        apart = (place[:, None] - place).abs()
        forced = (apart[..., 0] == 0) & (apart[..., 1:] <= 1).all(dim=-1) | (place[:, 0] == 0)
    number = forced.sum(dim=-1).clamp(min=max(1, round(0.4 * len(members))))
    ranks = scores.masked_fill(forced, math.inf).argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    assert torch.equal(block_map.to_dense(), ranks < number[:, None])
    assert block_map.query_grid == volume


def test_top_blocks_of_all_voxels_is_that_of_the_grid() -> None:
    volume = SparseVolume.from_mask(TEXT, torch.ones(TEXT.view, dtype=torch.bool))
    q, k = torch.randn(2, 2, TEXT.tokens, HEADS, HEAD_DIM)
    for pattern in (TopBlocks(top_p=0.6), TopBlocks(threshold=0.1, shared_heads=True), TopBlocks(top_k=2, tile=TILE)):
        maps = [pattern.select(q, k, grid, Context()).to_dense() for grid in (volume, TEXT)]
        assert torch.equal(*maps)


def test_the_triton_kernels_say_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    operator = pytest.importorskip("vidsparse_kernels.gpu.operator")
    monkeypatch.setattr(operator, "unsupported_device", lambda device: None)
    volume = SparseVolume.from_mask(GRID, shell(GRID))
    layout = volume.restrict(Dense(tile=(4, 4, 4)).plan(GRID)).layout
    reason = operator.unsupported(torch.zeros(1, volume.tokens, 1, 64), layout)
    assert reason == "takes whole boxes of a grid as tiles, not the valid voxels of a SparseVolume"
