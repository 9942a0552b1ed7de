"""Proxy tokens: the paper's rule by hand, the formula against loops in float64, gradients, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from against_float64 import Case

import vidsparse.corrections.columns
from vidsparse import BlockMap, Context, PooledComplement, ProxyTokens, SparseCall, VideoGrid, sparse_attention
from vidsparse.corrections.proxy_tokens import _places
from vidsparse.corrections.proxy_weights import Proxies, ProxyWeights
from vidsparse_kernels.layout import tile_tokens

TEXT = VideoGrid(3, 5, 7, prefix=3, suffix=6)
# Tile and box of each case; the boxes at the border of most videos are smaller.
CASES = {
    "ragged": (Case(VideoGrid(5, 7, 6)), (1, 2, 2)),
    "text": (Case(TEXT, batch=2), (2, 1, 4)),
    "map-for-each-sample-and-head": (Case(TEXT, batch=2, heads=3, map_batch=2, map_heads=3), (1, 2, 4)),
    "other-key-tile": (Case(TEXT, (1, 2, 4), (2, 4, 4), batch=2, map_heads=2), (2, 2, 2)),
    "one-frame": (Case(VideoGrid(1, 13, 11), (1, 8, 8)), (1, 4, 4)),
    "empty-rows": (Case(VideoGrid(5, 7, 6), empty=(0, 3)), (1, 1, 2)),
    "box-larger-than-tile": (Case(TEXT, (1, 2, 8), (1, 2, 8), batch=2), (2, 4, 4)),
    "one-token": (Case(VideoGrid(1, 1, 1)), (1, 2, 2)),
}
every_case = pytest.mark.parametrize(("case", "box"), CASES.values(), ids=CASES)
TINY = dict(rtol=1e-4, atol=1e-5)  # float32, outputs of order 1


def call(case: Case, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, proxies: Proxies | None = None) -> SparseCall:
    block_map = case.block_map()
    out, lse = sparse_attention(q, k, v, block_map, impl="reference", return_lse=True)
    return SparseCall(q, k, v, out, lse, block_map, Context(), lambda: (out, lse), proxies=proxies)


def drawn(heads: int, box: tuple[int, int, int]) -> Proxies:
    volume = math.prod(box)
    return Proxies(torch.randn(heads, volume), 2 * torch.randn(heads, volume), torch.randn(heads, 1))


def places_of(tokens: torch.Tensor, grid: VideoGrid, box: tuple[int, int, int]) -> torch.Tensor:
    """The number of each video token's place in a whole box, which counts row by row."""
    t, rest = (tokens - grid.prefix) // (grid.height * grid.width), (tokens - grid.prefix) % (grid.height * grid.width)
    y, x = rest // grid.width, rest % grid.width
    return (t % box[0] * box[1] + y % box[1]) * box[2] + x % box[2]


def looped(now: SparseCall, box: tuple[int, int, int], proxies: Proxies) -> torch.Tensor:
    """The formula, in float64: one softmax over the kept tokens, text, and the proxies of dropped tiles."""
    block_map, grid, (q, k, v) = (
        now.block_map,
        now.block_map.grid,
        (x.double() for x in (now.query, now.key, now.value)),
    )
    batch, _, heads, head_dim = q.shape
    key, value, mass = (x.double() for x in proxies)
    tiles = tile_tokens(grid.view, block_map.key_tile, grid.prefix)
    wholes = tile_tokens(grid.view, box, grid.prefix)
    parts = [(x[torch.isin(x, tile)], i) for x in wholes for i, tile in enumerate(tiles)]
    boxes, parent = zip(*((x, i) for x, i in parts if len(x)), strict=True)
    text = block_map.layout.key.extra_tokens.tolist()
    kept = block_map.to_dense().expand(batch, heads, -1, -1)
    rows = []
    for b in range(batch):
        for h in range(heads):
            far = []
            for tokens in boxes:
                place = places_of(tokens, grid, box)
                mean_key = key[h, place].softmax(dim=0) @ k[b, tokens, h]
                mean_value = value[h, place].softmax(dim=0) @ v[b, tokens, h]
                far.append((mean_key, mean_value, math.log(len(tokens)) + mass[h, 0]))
            for number, queries in enumerate(tile_tokens(grid.view, block_map.query_tile, grid.prefix)):
                near = [*text, *(int(x) for i, tile in enumerate(tiles) if kept[b, h, number, i] for x in tile)]
                dropped = [x for x, tile in zip(far, parent, strict=True) if not kept[b, h, number, tile]]
                keys = torch.cat([k[b, near, h], *(x[None] for x, _, _ in dropped)])
                values = torch.cat([v[b, near, h], *(x[None] for _, x, _ in dropped)])
                bias = torch.stack([*(torch.zeros(len(near), dtype=torch.float64)), *(x for _, _, x in dropped)])
                rows.append((b, queries, h, (q[b, queries, h] @ keys.T / head_dim**0.5 + bias).softmax(-1) @ values))
    found = now.out.double().clone()
    for b, queries, h, out in rows:
        found[b, queries, h] = out
    return found


def test_by_hand() -> None:
    # Two tiles of one row, boxes of two tokens, one channel. A query of 0 sees all at logit 0, a proxy at log 2.
    grid = VideoGrid(1, 2, 4)
    block_map = BlockMap.from_dense(torch.eye(2, dtype=torch.bool), grid, (1, 1, 4))
    q, k = torch.zeros(1, 8, 1, 1), torch.zeros(1, 8, 1, 1)
    v = torch.tensor([1.0, 2, 3, 6, 10, 20, 30, 40]).view(1, 8, 1, 1)
    out, lse = sparse_attention(q, k, v, block_map, impl="reference", return_lse=True)
    now = SparseCall(q, k, v, out, lse, block_map, Context(), lambda: (out, lse))
    assert out.flatten().tolist() == pytest.approx([3.0] * 4 + [25.0] * 4)
    # Means 15 and 35 count twice each: (1 + 2 + 3 + 6 + 2 * 15 + 2 * 35) / 8, and the same mean from below.
    mean = ProxyTokens(box=(1, 1, 2)).correct(now)
    assert mean.flatten().tolist() == pytest.approx([14.0] * 8)
    # Values weighed 1 : 3, so proxies 17.5 and 37.5, and 1.75 and 5.25, each with twice the mass.
    proxies = Proxies(torch.zeros(1, 2), torch.tensor([[0.0, math.log(3)]]), torch.full((1, 1), math.log(2)))
    learned = ProxyTokens((1, 1, 2), learned=True).correct(replace(now, proxies=proxies))
    first, second = (12 + 4 * 17.5 + 4 * 37.5) / 12, (100 + 4 * 1.75 + 4 * 5.25) / 12
    assert learned.flatten().tolist() == pytest.approx([first] * 4 + [second] * 4)


def test_the_papers_rule() -> None:
    # Of PT-DiT: proxies P are the means of windows of the hidden states z, and tokens attend to them:
    # softmax(Q K(P)^T / sqrt(d)) V(P). Where no tile is kept, nothing else is in the softmax.
    grid, box = VideoGrid(2, 4, 6), (1, 2, 3)
    z, (to_q, to_k, to_v) = torch.randn(1, 48, 10), torch.randn(3, 10, 8) / 10**0.5
    windows = z.view(2, 1, 2, 2, 2, 3, 10).mean(dim=(1, 3, 5)).view(1, 8, 10)  # frames, rows and columns of windows
    expected = (z @ to_q @ (windows @ to_k).mT / 8**0.5).softmax(dim=-1) @ (windows @ to_v)
    q, k, v = (x[:, :, None] for x in (z @ to_q, z @ to_k, z @ to_v))
    block_map = BlockMap.from_dense(torch.zeros(4, 4, dtype=torch.bool), grid, (1, 2, 6))
    out, lse = torch.zeros_like(q), torch.full((1, 1, 48), float("-inf"))
    now = SparseCall(q, k, v, out, lse, block_map, Context(), lambda: (out, lse))
    torch.testing.assert_close(ProxyTokens(box).correct(now)[:, :, 0], expected, **TINY)


@every_case
def test_against_loops_in_float64(case: Case, box: tuple[int, int, int]) -> None:
    proxies = drawn(case.heads, box)
    now = call(case, *case.tensors(), proxies)
    found = ProxyTokens(box, learned=True).correct(now)
    torch.testing.assert_close(found.double(), looped(now, box, proxies), **TINY)


@every_case
def test_averages_are_the_pooled_complement(case: Case, box: tuple[int, int, int]) -> None:
    now = call(case, *case.tensors(), drawn(case.heads, box))
    smaller = ProxyTokens(box).pool_tile(now.block_map.key_tile)
    expected = PooledComplement(gate=False, box=smaller).correct(now)
    assert torch.equal(ProxyTokens(box).correct(now), expected), "learned weights do not count"
    assert torch.equal(ProxyTokens(box, learned=True).correct(replace(now, proxies=None)), expected)
    untrained = ProxyWeights(case.heads, box)().__class__(*(x.detach() for x in ProxyWeights(case.heads, box)()))
    found = ProxyTokens(box, learned=True).correct(replace(now, proxies=untrained))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_gradients_of_what_is_learned_and_of_queries_keys_and_values() -> None:
    case, box = CASES["other-key-tile"]
    inputs = [x.requires_grad_() for x in case.tensors()]
    proxies = Proxies(*(x.requires_grad_() for x in drawn(case.heads, box)))
    block_map, weights = case.block_map(), torch.randn(inputs[0].shape)

    def gradients(exact: bool) -> list[torch.Tensor]:
        dtype = torch.float64 if exact else torch.float32
        q, k, v = (x.to(dtype) for x in inputs)
        out, lse = sparse_attention(q, k, v, block_map, impl="reference", return_lse=True)
        now = SparseCall(q, k, v, out, lse, block_map, Context(), lambda: (out, lse), proxies=proxies)
        found = looped(now, box, proxies) if exact else ProxyTokens(box, learned=True).correct(now)
        return list(torch.autograd.grad((found * weights).sum(), [*inputs, *proxies]))

    for found, expected in zip(gradients(False), gradients(True), strict=True):
        scale = float(expected.abs().max())
        assert scale > 0.1
        torch.testing.assert_close(found, expected, rtol=0, atol=3e-5 * scale)  # float32 sums of a few hundred terms


def test_gradcheck_of_the_formula() -> None:
    # The loops are what float32 is compared with: their own gradients are those of finite differences.
    case, box = Case(VideoGrid(1, 3, 4), (1, 2, 4), heads=1, head_dim=2), (1, 2, 2)
    now = call(case, *case.tensors())
    given = [x.double().requires_grad_() for x in (now.query, now.key, now.value, *drawn(1, box))]

    def formula(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *learned: torch.Tensor) -> torch.Tensor:
        return looped(replace(now, query=q, key=k, value=v), box, Proxies(*learned))

    assert torch.autograd.gradcheck(formula, given)


def test_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    case, box = CASES["map-for-each-sample-and-head"]
    now = call(case, *case.tensors(), drawn(3, box))
    whole = ProxyTokens(box, learned=True).correct(now)
    monkeypatch.setattr(vidsparse.corrections.columns, "SCORES", 1000)
    torch.testing.assert_close(ProxyTokens(box, learned=True).correct(now), whole)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lower_precision(dtype: torch.dtype) -> None:
    case, box = CASES["text"]
    now = call(case, *(x.to(dtype) for x in case.tensors()), drawn(case.heads, box))
    found = ProxyTokens(box, learned=True).correct(now)
    assert found.dtype == dtype
    # Twice the rounding of the output: once as sparse attention returns it, once as the correction does.
    limit = 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), looped(now, box, now.proxies), rtol=limit, atol=limit)  # type: ignore[arg-type]


def test_far_logits_do_not_overflow() -> None:
    case, box = CASES["ragged"]
    now = call(case, *case.tensors())
    steep = Proxies(torch.full((case.heads, 4), 500.0), torch.zeros(case.heads, 4), torch.zeros(case.heads, 1))
    steep.key[:, 0] = -500.0  # the place that a box of one token has alone
    found = ProxyTokens(box, learned=True).correct(replace(now, proxies=steep))
    torch.testing.assert_close(found.double(), looped(now, box, steep), **TINY)


def test_places_are_made_once_for_each_device() -> None:
    view, part, box = (5, 7, 6), (1, 2, 2), (1, 2, 2)
    found = _places(view, part, box, torch.device("meta"))
    assert all(x.is_meta for x in found) and _places(view, part, box, torch.device("meta")) is found
    assert not any(x.is_meta for x in _places(view, part, box, torch.device("cpu")))


def test_boxes_as_tiles_cut_them() -> None:
    cuts = {(2, 8, 8): (1, 4, 4), (8, 2, 8): (1, 2, 4), (32, 1, 2): (1, 1, 2), (4, 4, 4): (1, 4, 4)}
    assert {tile: ProxyTokens().pool_tile(tile) for tile in cuts} == cuts


def test_what_is_refused() -> None:
    case, _ = CASES["ragged"]
    with pytest.raises(ValueError, match=r"box=\(2, 3, 4\) does not fit the pattern's key tile .*, as with box="):
        ProxyTokens(box=(2, 3, 4)).correct(call(case, *case.tensors()))
    for fields, message in (
        ({"box": (0, 1, 1)}, "box"),
        ({"box": 4}, "box"),
        ({"learned": 1}, "learned=1 must be True"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            ProxyTokens(**fields)  # type: ignore[arg-type]
