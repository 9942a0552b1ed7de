"""VMoBA's selection against a brute force written from its definition, for routed tokens and for routed tiles."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from tiny_wan import call, tiny

from vidsparse import Context, Reuse, StepSchedule, VideoGrid, sparse_attention, sparsify
from vidsparse.patterns.mixture_of_blocks import MixtureOfBlocks
from vidsparse_kernels.layout import tile_tokens

GRIDS = {
    "3x5x7": VideoGrid(3, 5, 7),
    "1x6x6": VideoGrid(1, 6, 6),
    "7x1x1": VideoGrid(7, 1, 1),
    "3+3x5x4+2": VideoGrid(3, 5, 4, prefix=3, suffix=2),
}
RULES: dict[str, dict[str, Any]] = {
    "top_k": {"top_k": (1, 2, 3)},
    "threshold0.1": {"threshold": 0.1},
    "threshold0.6": {"threshold": 0.6},
}
every_grid = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
every_scope = pytest.mark.parametrize("scope", ["query", "head", "overall"])
every_layer = pytest.mark.parametrize("layer", [0, 1, 2])


def content(grid: VideoGrid, batch: int = 2, heads: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    query, key, value = torch.randn(3, batch, grid.tokens, heads, 8).unbind()
    return query, key, value


def blocks_in(grid: VideoGrid) -> dict[str, Any]:
    """Blocks of 2 frames, 3 x 4 and 2 x 3 x 5, or the grid's sides where these are shorter."""
    frames, height, width = grid.view
    return {
        "temporal": min(2, frames),
        "spatial": (min(3, height), min(4, width)),
        "box": (min(2, frames), min(3, height), min(5, width)),
    }


def published_blocks(grid: VideoGrid, layer: int) -> torch.Tensor:
    """The block of each video token, of the sides in `blocks_in`: int64 [video tokens]."""
    sides = ((2, 99, 99), (99, 3, 4), (2, 3, 5))[layer % 3]
    places = [
        tuple(n // side for n, side in zip(token, sides, strict=True))
        for token in itertools.product(*map(range, grid.view))
    ]
    number = {place: i for i, place in enumerate(sorted(set(places)))}
    return torch.tensor([number[place] for place in places])


def brute_force(gate: torch.Tensor, own: list[int], scope: str, rule: dict[str, Any], layer: int) -> torch.Tensor:
    """bool like the gate, float64 [H, queries, blocks], of one sample; own is the block of each query."""
    heads, queries, blocks = gate.shape
    kept = torch.zeros(gate.shape, dtype=torch.bool)
    pairs = list(itertools.product(range(heads), range(queries), range(blocks)))
    pools: dict[Any, list[tuple[int, int, int]]] = {}
    for h, q, b in pairs:
        pools.setdefault({"query": (h, q), "head": h, "overall": 0}[scope], []).append((h, q, b))
    for pool in pools.values():
        mine = [pair for pair in pool if own[pair[1]] == pair[2]]
        others = sorted((pair for pair in pool if own[pair[1]] != pair[2]), key=lambda pair: -gate[pair])
        for pair in mine:
            kept[pair] = True
        if "top_k" in rule:
            chosen = others[: rule["top_k"][layer % 3] * len(mine) - len(mine)]
        else:
            values = [float(gate[pair]) for pair in pool]
            low, high = min(values), max(values)
            weight = {pair: (float(gate[pair]) - low) / (high - low or 1.0) for pair in pool}
            total = sum(weight.values()) + 1e-6
            need = max(rule["threshold"] - sum(weight[pair] for pair in mine) / total, 0.0)
            chosen, reached = [], 0.0
            for pair in others:
                chosen.append(pair)
                reached += weight[pair] / total
                if reached >= need:
                    break
        for pair in chosen:
            kept[pair] = True
    return kept


def means(x: torch.Tensor, groups: list[torch.Tensor]) -> torch.Tensor:
    """Means of groups of tokens of one sample [tokens, H, head_dim]: float64 [H, groups, head_dim]."""
    return torch.stack([x[group].double().mean(dim=0) for group in groups], dim=1)


@every_layer
@every_scope
@every_rule
@every_grid
def test_routed_tokens_are_the_published_rule(grid: VideoGrid, rule: dict[str, Any], scope: Any, layer: int) -> None:
    pattern = MixtureOfBlocks(**rule, scope=scope, routing="token", **blocks_in(grid))
    query, key, _ = content(grid)
    mask = pattern.select(query, key, grid, Context(layer=layer)).token_mask()
    video = slice(grid.prefix, grid.prefix + grid.video_tokens)
    owner = published_blocks(grid, layer)
    groups = [(owner == block).nonzero()[:, 0] for block in owner.unique()]
    for sample, (q, k) in enumerate(zip(query[:, video], key[:, video], strict=True)):
        gate = q.transpose(0, 1).double() @ means(k, groups).mT
        expected = brute_force(gate, owner.tolist(), scope, rule, layer)
        assert torch.equal(mask[sample, :, video, video], expected[..., owner])


@every_layer
@every_scope
@every_rule
def test_routed_tiles_follow_the_same_rule_by_their_means(rule: dict[str, Any], scope: Any, layer: int) -> None:
    grid, tile = VideoGrid(5, 7, 11, prefix=2), (1, 2, 4)
    pattern = MixtureOfBlocks(**rule, scope=scope, tile=tile, **blocks_in(grid))
    query, key, _ = content(grid)
    kept = pattern.select(query, key, grid, Context(layer=layer)).to_dense()
    tiles = tile_tokens(grid.view, tile)
    places = torch.stack(torch.unravel_index(torch.arange(grid.video_tokens), grid.view))
    first, last = (places[:, [int(tokens[end]) for tokens in tiles]] for end in (0, -1))
    t, h, w = (first + last) // 2
    middle = (t * grid.height + h) * grid.width + w
    owner = published_blocks(grid, layer)[middle].unique(return_inverse=True)[1]
    groups = [torch.cat([tiles[i] for i in (owner == b).nonzero()[:, 0].tolist()]) for b in owner.unique()]
    for sample, (q, k) in enumerate(zip(query[:, grid.prefix :], key[:, grid.prefix :], strict=True)):
        gate = means(q, list(tiles)) @ means(k, groups).mT
        expected = brute_force(gate, owner.tolist(), scope, rule, layer)
        assert torch.equal(kept[sample], expected[..., owner])


@every_scope
@pytest.mark.parametrize("rule", [{"threshold": 1}, {"top_k": (999, 999, 999)}], ids=["threshold", "top_k"])
@every_grid
def test_all_the_scores_or_all_the_blocks_are_dense(grid: VideoGrid, rule: dict[str, Any], scope: Any) -> None:
    query, key, _ = content(grid)
    for routing, layer in itertools.product(("tile", "token"), range(3)):
        pattern = MixtureOfBlocks(**rule, scope=scope, routing=routing, temporal=min(2, grid.frames))
        assert pattern.select(query, key, grid, Context(layer=layer)).to_dense().all()


@every_layer
@every_scope
@every_grid
def test_one_block_is_attention_within_the_own_block(grid: VideoGrid, scope: Any, layer: int) -> None:
    query, key, value = content(grid)
    pattern = MixtureOfBlocks(top_k=(1, 1, 1), scope=scope, routing="token", **blocks_in(grid))
    block_map = pattern.select(query, key, grid, Context(layer=layer))
    owner = torch.nn.functional.pad(published_blocks(grid, layer), (grid.prefix, grid.suffix), value=-1)
    mask = (owner[:, None] == owner) | (owner[:, None] < 0) | (owner < 0)
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2)
    torch.testing.assert_close(sparse_attention(query, key, value, block_map, impl="reference"), expected)


@pytest.mark.parametrize(("scope", "extra"), [("query", 2 * 3 * 120), ("head", 2 * 3), ("overall", 2)])
def test_the_smallest_threshold_adds_one_pair_to_the_own_blocks(scope: Any, extra: int) -> None:
    grid = VideoGrid(4, 5, 6)
    query, key, _ = content(grid)
    pattern = MixtureOfBlocks(threshold=1e-9, scope=scope, routing="token", temporal=2)
    kept = pattern.select(query, key, grid, Context()).to_dense()
    own = published_blocks(grid, 0)[:, None] == published_blocks(grid, 0)
    assert (kept & own).sum() == 2 * 3 * own.sum()
    assert (kept & ~own).sum() == extra * 2 * 5 * 6, "a pair is a query and the tokens of one block"


@pytest.mark.parametrize("layer", range(7))
def test_layers_take_turns(layer: int) -> None:
    grid = VideoGrid(21, 45, 80)
    pattern = MixtureOfBlocks.training_free()
    assert pattern.block_for(grid, layer) == [(3, 45, 80), (21, 9, 10), (7, 15, 20)][layer % 3]
    query, key, _ = content(VideoGrid(5, 7, 11))
    found = pattern.select(query, key, VideoGrid(5, 7, 11), Context(layer=layer))
    again = pattern.select(query, key, VideoGrid(5, 7, 11), Context(layer=layer % 3))
    assert torch.equal(found.to_dense(), again.to_dense())


@every_layer
@pytest.mark.parametrize("view", [(21, 45, 80), (21, 80, 45), (21, 30, 52), (24, 36, 64), (1, 45, 80), (5, 7, 11)])
def test_tiles_have_a_kernel_and_blocks_are_as_many_as_published(view: tuple[int, int, int], layer: int) -> None:
    grid = VideoGrid(*view)
    pattern = MixtureOfBlocks(top_k=(1, 1, 1))
    block_map = pattern.plan(grid, Context(layer=layer))
    assert math.prod(block_map.key_tile) == (128 if view[1] * view[2] >= 1024 else 64)
    if view[0] == 21 and view[1] * view[2] == 3600:
        first_tiles = block_map.indices[0, 0, :, 0].unique()
        assert len(first_tiles) == (7, 40, 36)[layer], "not as many blocks as published"


def test_samples_select_by_themselves() -> None:
    grid = VideoGrid(5, 7, 11)
    query, key, _ = content(grid)
    query[1] *= 100
    pattern = MixtureOfBlocks.trained(scope="overall", tile=(1, 2, 4), **blocks_in(grid))
    together = pattern.select(query, key, grid, Context(layer=2)).to_dense()
    for sample in range(2):
        alone = pattern.select(query[sample : sample + 1], key[sample : sample + 1], grid, Context(layer=2))
        assert torch.equal(together[sample : sample + 1], alone.to_dense())


@pytest.mark.parametrize("routing", ["tile", "token"])
def test_no_gradient_flows_through_the_gate(routing: Any) -> None:
    grid = GRIDS["3+3x5x4+2"]
    leaves = [x.double().requires_grad_() for x in content(grid)]
    query, key, value = leaves
    pattern = MixtureOfBlocks.trained(routing=routing, tile=(1, 2, 2) if routing == "tile" else None, **blocks_in(grid))
    block_map = pattern.select(query, key, grid, Context(layer=2))
    assert 0 < block_map.density < 1
    q, k, v = (x.transpose(1, 2) for x in leaves)
    mask = block_map.token_mask()
    dense = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2)
    expected = torch.autograd.grad(dense.square().sum(), leaves)
    for impl in ("cpu", "reference"):
        found = torch.autograd.grad(sparse_attention(query, key, value, block_map, impl=impl).square().sum(), leaves)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)


def test_equal_scores_weigh_the_same() -> None:
    grid = VideoGrid(16, 8, 8)
    assert MixtureOfBlocks.trained(temporal=2).plan(grid).density == pytest.approx(0.25, abs=0.01)


def test_published_rules_have_names() -> None:
    assert MixtureOfBlocks.training_free() == MixtureOfBlocks(top_k=(2, 10, 9), scope="query")
    assert MixtureOfBlocks.trained() == MixtureOfBlocks(threshold=0.25, scope="head")
    assert MixtureOfBlocks.training_free((2, 6, 18), scope="head", temporal=4) == MixtureOfBlocks(
        top_k=(2, 6, 18), scope="head", temporal=4
    )
    assert MixtureOfBlocks.trained(0.5, routing="token").routing == "token"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "give one of top_k=None and threshold=None"),
        ({"top_k": (1, 1, 1), "threshold": 0.5}, "give one of"),
        ({"top_k": (0, 1, 1)}, r"top_k=\(0, 1, 1\) must be a tuple of three numbers"),
        ({"top_k": 3}, "top_k=3 must be a tuple"),
        ({"threshold": 0}, r"threshold=0 must be in \(0, 1\]"),
        ({"threshold": 1.5}, r"threshold=1.5 must be in \(0, 1\]"),
        ({"threshold": 0.5, "scope": "block"}, "scope='block' is unknown; choose one of query, head, overall"),
        ({"threshold": 0.5, "routing": "row"}, "routing='row' is unknown; choose one of tile, token"),
        ({"threshold": 0.5, "temporal": 0}, "temporal=0 must be a whole number of at least 1"),
        ({"threshold": 0.5, "spatial": (3,)}, r"spatial=\(3,\) must be a tuple of two sides"),
        ({"threshold": 0.5, "box": (1, 2)}, r"box=\(1, 2\) must be a tuple of three"),
        ({"threshold": 0.5, "tile": (0, 2, 2)}, r"tile=\(0, 2, 2\) must be a tuple of three"),
        ({"threshold": 0.5, "routing": "token", "tile": (1, 8, 8)}, "with routing='token' each token is a tile"),
    ],
)
def test_bad_fields_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MixtureOfBlocks(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"temporal": 6},
            r"temporal=6 is larger than the video of 5 x 7 x 11 tokens: use temporal=5 at most, or None",
        ),
        ({"spatial": (8, 3)}, r"spatial=\(8, 3\) is larger .* use spatial=\(7, 11\) at most"),
        ({"box": (5, 7, 12)}, r"box=\(5, 7, 12\) is larger .* use box=\(5, 7, 11\) at most"),
    ],
    ids=["temporal", "spatial", "box"],
)
def test_blocks_larger_than_the_video_are_refused_at_once(fields: dict[str, Any], message: str) -> None:
    pattern, transformer = MixtureOfBlocks.trained(**fields), tiny()
    for grid in (VideoGrid(5, 7, 11), VideoGrid(5, 7, 11, prefix=20)):
        with pytest.raises(ValueError, match=message):
            pattern.plan(grid)
    # Not when the dense steps are over.
    schedule = StepSchedule(Reuse(pattern), dense_steps=2)
    with sparsify(transformer, schedule), pytest.raises(ValueError, match=message), torch.no_grad():
        call(transformer)


def test_blocks_as_large_as_the_video_are_dense() -> None:
    grid = VideoGrid(5, 7, 11)
    pattern = MixtureOfBlocks.training_free((1, 1, 1), temporal=5, spatial=(7, 11), box=grid.view)
    for layer in range(3):
        assert pattern.plan(grid, Context(layer=layer)).density == 1
