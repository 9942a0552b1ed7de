"""`ExactBlocks` against dense attention, `Reuse` by what it keeps and when it forgets."""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny_wan import Pipeline, call, tiny

from vidsparse import (
    BlockMap,
    Context,
    Dense,
    HeadGroup,
    Pattern,
    Radial,
    SpatialTemporal,
    StepSchedule,
    VideoGrid,
    sparsify,
)
from vidsparse.block_map import Plan
from vidsparse.patterns.exact_blocks import ExactBlocks, pooled_attention
from vidsparse.patterns.reuse import KeptMap, Reuse, sampled_recall
from vidsparse.patterns.top_blocks import TopBlocks
from vidsparse.runtime.call import Memory
from vidsparse_kernels.layout import tile_of_token, tile_tokens

TILE = (2, 2, 4)
GRIDS = {
    "8x8x8": VideoGrid(8, 8, 8),
    "5x7x11": VideoGrid(5, 7, 11),
    "1x9x16": VideoGrid(1, 9, 16),
    "3+4x5x6+5": VideoGrid(4, 5, 6, prefix=3, suffix=5),
}
every_grid = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
RAGGED = GRIDS["3+4x5x6+5"]
TOP = TopBlocks(density=0.3, tile=TILE)


def content(grid: VideoGrid, batch: int = 2, heads: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    query, key = 1.5 * torch.randn(2, batch, grid.tokens, heads, 8)
    return query, key


def video_attention(query: torch.Tensor, key: torch.Tensor, grid: VideoGrid) -> torch.Tensor:
    """Softmax over the video's keys alone: float64 [B, H, video tokens, video tokens]."""
    video = slice(grid.prefix, grid.prefix + grid.video_tokens)
    q, k = (x[:, video].double().transpose(1, 2) for x in (query, key))
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1)


def assert_same(found: Plan, wanted: Plan) -> None:
    assert isinstance(found, BlockMap) and isinstance(wanted, BlockMap)
    assert found.counts.dtype == found.indices.dtype == torch.int32
    assert torch.equal(found.to_dense(), wanted.to_dense())


class Numbered(Dense):
    """Answers with another map each time, and remembers how often it was asked."""

    asked: list[Context]

    def is_dense(self, context: Context) -> bool:
        return context.layer == 9

    def select(self, query: torch.Tensor, key: torch.Tensor, grid: VideoGrid, context: Context) -> BlockMap:
        type(self).asked.append(context)
        tiles = math.prod(grid.tiles(TILE))
        return BlockMap.from_dense(torch.eye(tiles, dtype=torch.bool).roll(len(self.asked) - 1, 1), grid, TILE)


@pytest.fixture(autouse=True)
def nothing_asked() -> Iterator[None]:
    Numbered.asked = []
    yield
    Numbered.asked = []


# ExactBlocks


@every_grid
def test_pooled_attention_is_dense_attention_summed_over_keys_and_averaged_over_queries(grid: VideoGrid) -> None:
    query, key = content(grid)
    weights, tiles = video_attention(query, key, grid), tile_tokens(grid.view, TILE)
    columns = torch.stack([weights[..., keys].sum(dim=-1) for keys in tiles], dim=-1)
    wanted = torch.stack([columns[:, :, queries].mean(dim=2) for queries in tiles], dim=2)
    torch.testing.assert_close(pooled_attention(query, key, grid, TILE).double(), wanted, rtol=1e-5, atol=1e-7)


@every_grid
@pytest.mark.parametrize("sink", [0, 1, 3], ids=lambda n: f"sink{n}")
@pytest.mark.parametrize("ratio", [0.01, 0.3, 0.75, (1.0, 0.5, 0.1)], ids=str)
def test_each_group_keeps_its_own_best(grid: VideoGrid, sink: int, ratio: Any) -> None:
    query, key = content(grid)
    block_map = ExactBlocks(ratio, sink, TILE).select(query, key, grid, Context())
    attention, kept = pooled_attention(query, key, grid, TILE), block_map.to_dense()
    per_time = math.prod(grid.tiles(TILE)[1:])
    times = [tile // per_time for tile in range(attention.shape[-1])]
    for row, time in enumerate(times):
        in_sink = [t * TILE[0] < sink for t in times]
        groups = [
            [i for i, t in enumerate(times) if in_sink[i]],
            [i for i, t in enumerate(times) if not in_sink[i] and t == time],
            [i for i, t in enumerate(times) if not in_sink[i] and t != time],
        ]
        for members, share in zip(groups, ratio if isinstance(ratio, tuple) else (ratio,) * 3, strict=True):
            number = min(len(members), max(1, round(share * len(members))))
            ranked = attention[:, :, row].clone()
            ranked[..., row] = 2.0
            best = ranked[..., members].topk(number).indices
            wanted = torch.zeros(2, 3, len(members), dtype=torch.bool).scatter(-1, best, True)
            assert torch.equal(kept[:, :, row, members], wanted)


@every_grid
def test_a_ratio_of_one_is_dense(grid: VideoGrid) -> None:
    assert ExactBlocks(1.0, tile=TILE).select(*content(grid), grid, Context()).token_density == 1


@every_grid
@pytest.mark.parametrize("sink", [0, 2], ids=lambda n: f"sink{n}")
def test_a_plan_is_the_answer_to_zeros(grid: VideoGrid, sink: int) -> None:
    pattern, zeros = ExactBlocks(0.4, sink, TILE), torch.zeros(1, grid.tokens, 3, 8)
    planned = pattern.plan(grid, Context(heads=3))
    # Sums of equal weights differ in the last bit, which decides between equal tiles: only the counts are the same.
    assert torch.equal(planned.counts, pattern.select(zeros, zeros, grid, Context()).counts)
    assert planned.to_dense().diagonal(dim1=-2, dim2=-1).all()


# Reuse: what it answers


@every_grid
@pytest.mark.parametrize("pattern", [TOP, ExactBlocks(tile=TILE), Radial(density=0.3, tile=TILE)], ids=repr)
def test_later_steps_get_the_map_of_the_first_though_content_changes(pattern: Pattern, grid: VideoGrid) -> None:
    memory: dict[Any, Any] = {}
    query, key = content(grid)
    wanted = pattern.select(query, key, grid, Context(heads=3))
    for step in (3, 4, 9):
        context = Context(step=step, heads=3, memory=memory)
        assert_same(Reuse(pattern).select(*((query, key) if step == 3 else content(grid)), grid, context), wanted)


def test_without_memory_it_answers_as_the_pattern_does() -> None:
    context = Context(heads=3)
    assert_same(Reuse(TOP).plan(RAGGED, context), TOP.plan(RAGGED, context))
    assert Reuse(Numbered()).is_dense(Context(layer=9, layers=10)) and not Reuse(Numbered()).is_dense(Context())


def test_two_reuses_in_one_memory_do_not_share_maps() -> None:
    memory: dict[Any, Any] = {}
    query, key = content(RAGGED)
    patterns = [TOP, TopBlocks(density=0.6, tile=TILE)]
    for step in (0, 1):
        for pattern in patterns:
            found = Reuse(pattern).select(query, key, RAGGED, Context(step=step, memory=memory))
            assert_same(found, pattern.select(query, key, RAGGED, Context()))
    assert len(memory) == 2


def test_groups_of_heads_with_tiles_of_their_own() -> None:
    class Groups(Numbered):
        def select(self, query: Any, key: Any, grid: VideoGrid, context: Context) -> Any:
            first, second = TOP.select(query[:, :, :2], key[:, :, :2], grid, context), Dense((1, 5, 2)).plan(grid)
            return HeadGroup((0, 2), first, "mean"), HeadGroup((1,), second)

    memory: dict[Any, Any] = {}
    reuse, context = Reuse(Groups(), min_recall=0.01), Context(heads=3, memory=memory)
    chosen, kept = (reuse.select(*content(RAGGED), RAGGED, context) for _ in range(2))
    assert isinstance(chosen, tuple) and isinstance(kept, tuple)
    assert [g.heads for g in kept] == [(0, 2), (1,)] and [g.empty for g in kept] == ["mean", "zero"]
    for a, b in zip(chosen, kept, strict=True):
        assert_same(b.block_map, a.block_map)


# Reuse: when it forgets


@pytest.mark.parametrize(
    ("every", "asked"), [(None, [2]), (1, [2, 3, 4, 5, 6, 7]), (2, [2, 4, 6]), (4, [2, 6]), (9, [2])], ids=str
)
def test_refresh_every(every: int | None, asked: list[int]) -> None:
    memory: dict[Any, Any] = {}
    for step in range(2, 8):
        Reuse(Numbered(), every).select(*content(RAGGED), RAGGED, Context(step=step, memory=memory))
    assert [context.step for context in Numbered.asked] == asked


def test_refresh_counts_steps_and_not_calls() -> None:
    memory: dict[Any, Any] = {}
    for step in (0, 0, 1, 5, 6):
        Reuse(Numbered(), 3).select(*content(RAGGED), RAGGED, Context(step=step, memory=memory))
    assert [context.step for context in Numbered.asked] == [0, 5]


def test_a_fall_of_the_recall_chooses_anew() -> None:
    memory: dict[Any, Any] = {}
    # Every token has eyes for one tile of keys alone; from the third step on for another.
    owner = tile_of_token(RAGGED.view, TILE)
    signs = torch.nn.functional.one_hot(owner, int(owner.max()) + 1).float() * 8
    signs = torch.nn.functional.pad(signs, (0, 0, RAGGED.prefix, RAGGED.suffix))[None, :, None]
    reuse, steps = Reuse(TOP, min_recall=0.8), []
    for step, shift in enumerate((5, 5, 9, 9)):
        query = signs.roll(shift, dims=-1)
        found = reuse.select(query, signs, RAGGED, Context(step=step, memory=memory))
        assert_same(found, TOP.select(query, signs, RAGGED, Context()))
        steps.append(memory[reuse].step)
    assert steps == [0, 0, 2, 2]
    # Without the check the map of the first step stays.
    memory.clear()
    for step, shift in enumerate((5, 9)):
        Reuse(TOP).select(signs.roll(shift, dims=-1), signs, RAGGED, Context(step=step, memory=memory))
    assert memory[Reuse(TOP)].step == 0


@pytest.mark.parametrize(
    "other",
    [{"batch": 1}, {"heads": 2}, {"grid": VideoGrid(4, 6, 5, prefix=3, suffix=5)}, {"step": 1}],
    ids=["batch", "heads", "grid", "earlier-step"],
)
def test_another_call_chooses_anew(other: dict[str, Any]) -> None:
    memory: dict[Any, Any] = {}
    for change in ({}, other):
        settings: dict[str, Any] = {"batch": 2, "heads": 3, "grid": RAGGED, "step": 2} | change
        step, grid = settings.pop("step"), settings["grid"]
        Reuse(Numbered()).select(*content(**settings), grid, Context(step=step, memory=memory))
    assert len(Numbered.asked) == 2 and len(memory) == 1


# The recall


@pytest.mark.parametrize("pattern", [Radial(density=0.3, tile=TILE), SpatialTemporal()], ids=repr)
def test_recall_of_maps_that_stand_on_another_device(pattern: Pattern) -> None:
    grid = GRIDS["8x8x8"]
    query, key = (x.to("meta") for x in content(grid))
    assert sampled_recall(query, key, pattern.plan(grid, Context(heads=3))).device.type == "meta"


@every_grid
def test_sampled_recall_is_the_attention_to_kept_tiles_at_the_sampled_tokens(grid: VideoGrid) -> None:
    query, key = content(grid)
    plan = TOP.select(query, key, grid, Context())
    kept = plan.to_dense()[:, :, tile_of_token(grid.view, TILE)][..., tile_of_token(grid.view, TILE)]
    caught = (video_attention(query, key, grid) * kept).sum(dim=-1)
    sample = [int(math.modf(i * (math.sqrt(5) - 1) / 2)[0] * grid.video_tokens) for i in range(64)]
    assert float(sampled_recall(query, key, plan)) == pytest.approx(float(caught[..., sample].mean()), rel=1e-4)
    assert float(sampled_recall(query, key, plan)) == pytest.approx(float(caught.mean()), abs=0.05)
    assert float(sampled_recall(query, key, Dense(TILE).plan(grid))) == pytest.approx(1.0)


def test_the_sample_prefers_no_column_of_a_frame() -> None:
    grid = VideoGrid(4, 16, 16)  # 64 tokens at equal distances would all stand in one column
    query, key = torch.zeros(2, 1, grid.tokens, 1, 4)
    for column in range(0, 16, 4):
        kept = torch.zeros(4, 4, dtype=torch.bool)
        kept[column // 4] = True
        recall = sampled_recall(query, key, (HeadGroup((0,), BlockMap.from_dense(kept, grid, (4, 16, 4))),))
        assert float(recall) == pytest.approx(0.25, abs=0.03)


# The memory


def test_maps_are_kept_as_int16_and_only_as_wide_as_the_longest_row() -> None:
    memory: dict[Any, Any] = {}
    reuse = Reuse(TopBlocks(top_k=3, tile=TILE))
    grid = GRIDS["8x8x8"]
    reuse.select(*content(grid), grid, Context(memory=memory))
    entry = memory[reuse]
    assert isinstance(entry, KeptMap) and entry.step == 0 and entry.call[:3] == (2, 3, grid)
    assert entry.packed.counts.dtype == entry.packed.indices.dtype == torch.int16
    assert entry.packed.indices.shape == (2, 3, 32, 3)
    assert entry.nbytes == 2 * (2 * 3 * 32) * (1 + 3)


def test_maps_that_somebody_holds_are_given_again() -> None:
    memory: dict[Any, Any] = {}
    grid, reuse = GRIDS["8x8x8"], Reuse(TopBlocks(top_k=3, tile=TILE))
    first = reuse.select(*content(grid), grid, Context(memory=memory))
    assert isinstance(first, BlockMap)
    assert reuse.select(*content(grid), grid, Context(memory=memory, step=1)) is first
    expected, seen = first.to_dense(), weakref.ref(first)
    del first
    assert seen() is None  # the memory holds the packed map alone
    second = reuse.select(*content(grid), grid, Context(memory=memory, step=2))
    assert isinstance(second, BlockMap)
    assert reuse.select(*content(grid), grid, Context(memory=memory, step=3)) is second
    assert torch.equal(second.to_dense(), expected) and second.indices.dtype == torch.int32
    copied = copy.deepcopy(memory)[reuse].plan()
    assert copied is not second and torch.equal(copied.to_dense(), expected)


@pytest.mark.parametrize(("tiles", "dtype"), [(32767, torch.int16), (32768, torch.int32)], ids=str)
def test_numbers_of_tiles_that_int16_cannot_hold(tiles: int, dtype: torch.dtype) -> None:
    class Wide(Numbered):
        def select(self, query: Any, key: Any, grid: VideoGrid, context: Context) -> BlockMap:
            return BlockMap.from_dense(torch.ones(1, tiles, dtype=torch.bool), grid, (1, 1, tiles), (1, 1, 1))

    memory: dict[Any, Any] = {}
    grid, reuse = VideoGrid(1, 1, tiles), Reuse(Wide())
    nothing = torch.zeros(1, tiles, 1, 1)
    for step in (0, 1):
        found = reuse.select(nothing, nothing, grid, Context(step=step, memory=memory))
        assert isinstance(found, BlockMap) and found.density == 1
    assert memory[reuse].packed.indices.dtype == dtype


# In a transformer


def memories(transformer: Any, layer: int) -> dict[int, dict[Any, Any]]:
    """Branch -> what is kept for a batch of one."""
    found: dict[int, dict[int, Memory]] = transformer.blocks[layer].attn1.processor.layer.memories
    return {branch: sizes[1].pattern if 1 in sizes else {} for branch, sizes in found.items()}


def latents(seed: int) -> torch.Tensor:
    return torch.randn(1, 4, 5, 14, 22, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_layers_branches_and_videos_have_maps_of_their_own() -> None:
    transformer, reuse = tiny(), Reuse(TOP)
    with sparsify(transformer, StepSchedule(reuse, dense_steps=1)) as run:
        for seed, timestep in enumerate((900.0, 700.0, 500.0, 300.0)):
            for branch in (0, 1):
                call(transformer, timestep=timestep, hidden_states=latents(10 * branch + seed))
        first = {(layer, branch): memories(transformer, layer)[branch][reuse] for layer in (0, 1) for branch in (0, 1)}
        assert {entry.step for entry in first.values()} == {1}
        maps = [entry.packed.to_dense() for entry in first.values()]
        assert not any(torch.equal(a, b) for i, a in enumerate(maps) for b in maps[:i])

        call(transformer, timestep=900.0, hidden_states=latents(5))
        assert memories(transformer, 0) == memories(transformer, 1) == {0: {}}
        call(transformer, timestep=800.0, hidden_states=latents(6))
        again = memories(transformer, 0)[0][reuse]
        assert not torch.equal(again.packed.to_dense(), first[0, 0].packed.to_dense())
        assert not memories(transformer, 0).get(1)
    densities = {round(c.density, 6) for c in run.report().sparse}
    assert len(densities) == 1


@torch.no_grad()
def test_experts_have_maps_of_their_own() -> None:
    one, two, reuse = tiny(), tiny(num_layers=1), Reuse(Numbered())
    with sparsify(Pipeline(transformer=one, transformer_2=two), reuse):
        for timestep in (900.0, 800.0):
            call(one, timestep=timestep)
        for timestep in (700.0, 600.0):
            call(two, timestep=timestep)
    assert [(c.transformer, c.layer) for c in Numbered.asked] == [
        ("transformer", 0),
        ("transformer", 1),
        ("transformer_2", 0),
    ]


@torch.no_grad()
def test_a_kept_map_gives_the_attention_of_the_map() -> None:
    transformer, same = tiny(), latents(3)
    with sparsify(transformer, Reuse(ExactBlocks(0.4, tile=TILE), min_recall=0.1)):
        found = [call(transformer, timestep=t, hidden_states=same) for t in (500.0, 500.0)]
    assert torch.equal(*found)
    with sparsify(transformer, ExactBlocks(0.4, tile=TILE)):
        assert torch.equal(call(transformer, timestep=500.0, hidden_states=same), found[0])


@pytest.mark.parametrize(
    ("steps", "skip", "dense"), [(50, 0.2, 12), (128, 0.2, 27), (4, 0.2, 2), (50, 0.0, 2)], ids=str
)
def test_the_published_numbers_of_dense_steps(steps: int, skip: float, dense: int) -> None:
    schedule = Reuse.published(steps=steps, skip=skip, ratio=0.5)
    assert schedule.pattern == Reuse(ExactBlocks(0.5))
    assert sum(schedule.is_dense(Context(step=i, steps=steps)) for i in range(steps)) == dense


# Bad arguments


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Reuse(0.2), TypeError, r"pattern=0\.2 must be a pattern, such as TopBlocks"),  # type: ignore[arg-type]
        (
            lambda: Reuse(TOP, refresh_every=0),
            ValueError,
            r"refresh_every=0 must be a whole number of at least 1, or None",
        ),
        (lambda: Reuse(TOP, min_recall=0.0), ValueError, r"min_recall=0\.0 must be in \(0, 1\]"),
        (lambda: Reuse(TOP, min_recall=1.1), ValueError, r"min_recall=1\.1 must be in"),
        (lambda: Reuse.published(steps=0), ValueError, r"steps=0 must be at least 1"),
        (lambda: Reuse.published(skip=1.5), ValueError, r"skip=1\.5 in \[0, 1\]"),
        (lambda: ExactBlocks(0.0), ValueError, r"ratio=0\.0 must be in \(0, 1\]"),
        (lambda: ExactBlocks(1.1), ValueError, r"ratio=1\.1 must be in"),
        (lambda: ExactBlocks(sink=-1), ValueError, r"sink=-1 must be a whole number of at least 0"),
        (lambda: ExactBlocks(tile=(8, 8)), ValueError, r"tile=\(8, 8\) must be"),  # type: ignore[arg-type]
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_arguments(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
