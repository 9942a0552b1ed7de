"""Corrections: where they are exact, what they leave alone, and the published rules against plain loops."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from against_float64 import Case
from torch.nn.functional import scaled_dot_product_attention

import vidsparse.corrections.columns
from vidsparse import BlockMap, Context, Correction, Dense, Radial, SparseCall, VideoGrid, sparse_attention
from vidsparse.corrections import PooledComplement, Rectified, Reshaped
from vidsparse.grid import Tile
from vidsparse_kernels.layout import tile_of_token, tile_tokens

TEXT = VideoGrid(3, 5, 7, prefix=3, suffix=6)
CASES = {
    "ragged": Case(VideoGrid(5, 7, 6)),
    "text": Case(TEXT, batch=2),
    "map-for-each-sample-and-head": Case(TEXT, batch=2, heads=3, map_batch=2, map_heads=3),
    "other-key-tile": Case(TEXT, (1, 2, 4), (2, 4, 4), batch=2, map_heads=2),
    "one-frame": Case(VideoGrid(1, 13, 11), (1, 8, 8)),
    "empty-rows": Case(VideoGrid(5, 7, 6), empty=(0, 3)),
    "one-token": Case(VideoGrid(1, 1, 1)),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
CORRECTIONS = (
    PooledComplement(),
    PooledComplement(gate=False),
    PooledComplement(box=(1, 1, 2)),
    PooledComplement(box=4),
    PooledComplement(variance=True),
    Rectified(),
    Reshaped("none"),
    Reshaped("tile"),
    Reshaped("full"),
)
every_correction = pytest.mark.parametrize("correction", CORRECTIONS, ids=repr)
TINY = dict(rtol=1e-4, atol=1e-5)  # float32, outputs of order 1


def call(
    case: Case,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    context: Context | None = None,
    extra_valid: torch.Tensor | None = None,
) -> SparseCall:
    """A sparse call with a random map."""

    def attend(block_map: BlockMap) -> tuple[torch.Tensor, torch.Tensor]:
        return sparse_attention(q, k, v, block_map, extra_valid=extra_valid, impl="reference", return_lse=True)

    block_map, full = case.block_map(), Dense(case.query_tile).plan(case.grid)
    return SparseCall(q, k, v, *attend(block_map), block_map, context or Context(), lambda: attend(full), extra_valid)


def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


def flattened(case: Case, x: torch.Tensor, tile: tuple[int, int, int]) -> torch.Tensor:
    """The same, with one value for all video tokens of a tile."""
    x = x.clone()
    for tokens in tile_tokens(case.grid.view, tile, case.grid.prefix):
        x[:, tokens] = x[:, tokens[:1]]
    return x


def later(now: SparseCall, step: int) -> SparseCall:
    return replace(now, context=replace(now.context, step=step))


@every_correction
def test_text_that_is_not_real_changes_nothing(correction: Correction) -> None:
    case, valid = CASES["text"], torch.tensor([4, 0])
    q, k, v = case.tensors()
    text = Dense().plan(TEXT).layout.query.extra_tokens
    rows, results = [slice(3, 3 + TEXT.video_tokens), text[:4]], []
    for noise in (0.0, 9.0):
        for sample, real in enumerate(valid.tolist()):
            k[sample, text[real:]] += noise
            v[sample, text[real:]] -= noise
        torch.manual_seed(0)  # of the map
        now = call(case, q, k, v, extra_valid=valid)
        correction.correct(now)
        out = correction.correct(later(now, 1))
        results.append((out[:, rows[0]], out[0, rows[1]]))
    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(first, second, **TINY)


@every_correction
@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_shape_dtype_and_text_rows(case: Case, correction: Correction, dtype: torch.dtype) -> None:
    now = call(case, *(x.to(dtype) for x in case.tensors()))
    correction.correct(now)
    found = correction.correct(later(now, 1))
    assert found.shape == now.out.shape and found.dtype == dtype and found.isfinite().all()
    text = now.block_map.layout.query.extra_tokens
    torch.testing.assert_close(found[:, text], now.out[:, text])


@pytest.mark.parametrize("correction", [c for c in CORRECTIONS if not isinstance(c, Reshaped)], ids=repr)
@every_case
def test_nothing_dropped_nothing_changed(case: Case, correction: Correction) -> None:
    now = call(case, *case.tensors())
    full = replace(now, block_map=Dense(case.query_tile).plan(case.grid))
    assert torch.equal(correction.correct(full), full.out)
    # Rows that keep everything stay, bit for bit, in a map that drops elsewhere.
    kept = now.block_map.to_dense()
    kept[:, :, 0] = True
    query_tiles = tile_of_token(case.grid.view, case.query_tile)
    rows = case.grid.prefix + (query_tiles == 0).nonzero().squeeze(-1)
    block_map = case.block_map(kept)
    out, lse = sparse_attention(now.query, now.key, now.value, block_map, impl="reference", return_lse=True)
    found = correction.correct(replace(now, out=out, lse=lse, block_map=block_map))
    assert torch.equal(found[:, rows], out[:, rows])


@every_case
@pytest.mark.parametrize("variance", [False, True], ids=["", "variance"])
def test_pooled_complement_is_exact_when_keys_are_equal_within_tiles(case: Case, variance: bool) -> None:
    q, k, v = case.tensors()
    k = flattened(case, 2 * k, case.key_tile or case.query_tile)
    for gate in (False, True):
        found = PooledComplement(gate=gate, variance=variance).correct(call(case, q, k, v))
        torch.testing.assert_close(found, dense(q, k, v), **TINY)


@every_case
def test_pooled_complement_with_smaller_boxes(case: Case) -> None:
    q, k, v = case.tensors()
    now = call(case, q, k, v)
    found = PooledComplement(gate=False, box=(1, 1, 1)).correct(now)
    torch.testing.assert_close(found, dense(q, k, v), **TINY)
    found = PooledComplement(gate=False, box=now.block_map.key_tile).correct(now)
    torch.testing.assert_close(found, PooledComplement(gate=False).correct(now))
    k = flattened(case, 2 * k, (1, 2, 4))
    torch.testing.assert_close(PooledComplement(box=(1, 2, 4)).correct(call(case, q, k, v)), dense(q, k, v), **TINY)


def test_pooled_complement_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    now = call(CASES["map-for-each-sample-and-head"], *CASES["map-for-each-sample-and-head"].tensors())
    whole = PooledComplement().correct(now)
    monkeypatch.setattr(vidsparse.corrections.columns, "SCORES", 1000)
    torch.testing.assert_close(PooledComplement().correct(now), whole)


def test_variance_corrects_the_mass_of_spread_keys() -> None:
    grid = VideoGrid(2, 32, 32)
    case = Case(grid, (1, 32, 32), head_dim=64)
    q, k, v = case.tensors()
    block_map = case.block_map(torch.eye(2, dtype=torch.bool))
    out, lse = sparse_attention(q, k, v, block_map, impl="reference", return_lse=True)
    now = SparseCall(q, k, v, out, lse, block_map, Context(), lambda: (out, lse))
    ones = replace(now, value=torch.ones_like(v), out=torch.zeros_like(out))
    # With values of 1 in the dropped tile and an output of 0, what comes back is the dropped tile's mass: a half here.
    without, with_it = (PooledComplement(gate=False, variance=x).correct(ones).mean() for x in (False, True))
    assert without < 0.42 and abs(with_it - 0.5) < 0.01


def test_gate_follows_the_agreement_on_kept_tiles() -> None:
    case = Case(VideoGrid(1, 8, 16), (1, 8, 8))
    q, k, v = case.tensors()
    now = replace(call(case, q, k, v), block_map=case.block_map(torch.eye(2, dtype=torch.bool)))
    centre = v.mean(dim=1, keepdim=True)
    mean = torch.stack([v[:, t].mean(dim=1) for t in tile_tokens(case.grid.view, (1, 8, 8))], dim=1)
    owner = tile_of_token(case.grid.view, (1, 8, 8))
    # With one kept tile, attention to the kept means is the mean value.
    for sign, expected in ((1.0, 1.0), (-1.0, 0.0)):
        out = centre + sign * 3 * (mean[:, owner] - centre)
        change = PooledComplement(gate=False).correct(replace(now, out=out)) - out
        found = PooledComplement().correct(replace(now, out=out)) - out
        torch.testing.assert_close(found, expected * change, **TINY)


def test_box_must_divide_the_tile() -> None:
    case = CASES["ragged"]
    with pytest.raises(ValueError, match="must divide the pattern's key tile"):
        PooledComplement(box=(2, 3, 4)).correct(call(case, *case.tensors()))
    for box in ((0, 1, 1), 0):
        with pytest.raises(ValueError, match="box"):
            PooledComplement(box=box)


@pytest.mark.parametrize(
    ("tile", "tokens", "box"),
    [
        ((4, 4, 8), 16, (4, 2, 2)),
        ((2, 8, 8), 16, (2, 4, 2)),
        ((1, 4, 16), 64, (1, 4, 16)),
        ((1, 4, 16), 16, (1, 4, 4)),
        ((3, 6, 5), 20, (3, 3, 5)),
        ((1, 8, 8), 1, (1, 1, 1)),
    ],
)
def test_boxes_of_so_many_tokens(tile: Tile, tokens: int, box: Tile) -> None:
    assert PooledComplement(box=tokens).pool_tile(tile) == box


@every_case
def test_rectified_against_loops(case: Case) -> None:
    # Of keys and queries that are alike within a tile some pairs are trusted.
    q, k, v = case.tensors()
    q, k = (0.3 * x + flattened(case, x, tile) for x, tile in ((q, case.query_tile), (k, case.query_tile)))
    now = call(case, q, k, v)
    block_map, text = now.block_map, now.block_map.layout.query.extra_tokens
    rows, columns = (
        tile_tokens(case.grid.view, tile, case.grid.prefix) for tile in (block_map.query_tile, block_map.key_tile)
    )
    kept = block_map.to_dense().expand(case.batch, case.heads, -1, -1)
    expected, trusted_pairs = now.out.clone(), 0
    for b in range(case.batch):
        for h in range(case.heads):
            keys = torch.stack([k[b, t, h].mean(dim=0) for t in columns])
            values = torch.stack([v[b, t, h].mean(dim=0) for t in columns])
            off = torch.stack([(k[b, t, h] - k[b, t, h].mean(dim=0)).abs().mean(dim=0) for t in columns])
            for number, tokens in enumerate(rows):
                mean = q[b, tokens, h].mean(dim=0)
                mass = torch.tensor([float(len(t)) for t in columns]) * (keys @ mean / case.head_dim**0.5).exp()
                shares = mass / (mass.sum() + (k[b, text, h] @ mean / case.head_dim**0.5).exp().sum())
                error = (keys @ (q[b, tokens, h] - mean).abs().mean(dim=0)).abs() + (off @ mean).abs()
                shares = shares * (((keys @ mean).abs() > error) & ~kept[b, h, number])
                trusted_pairs += int((shares > 0).sum())
                expected[b, tokens, h] = (1 - shares.sum()) * now.out[b, tokens, h] + shares @ values
    torch.testing.assert_close(Rectified().correct(now), expected, **TINY)
    assert trusted_pairs > 0 or bool(kept.all())


@every_case
def test_rectified_is_exact_when_tokens_are_equal_within_tiles(case: Case) -> None:
    q, k, v = case.tensors()
    q = flattened(case, q, case.query_tile)
    k, v = (flattened(case, x, case.key_tile or case.query_tile) for x in (k, v))
    now = call(case, q, k, v)
    torch.testing.assert_close(Rectified().correct(now), dense(q, k, v), **TINY)


@every_case
@pytest.mark.parametrize("residual", ["none", "tile", "full"])
def test_reshaped_is_dense_at_a_refresh(case: Case, residual: str) -> None:
    q, k, v = case.tensors()
    now = call(case, q, k, v)
    correction = Reshaped(residual, drift=0.0, refresh_every=3)  # type: ignore[arg-type]
    for step in (4, 7):
        torch.testing.assert_close(correction.correct(later(now, step)), dense(q, k, v), **TINY)
    if residual == "full":
        # Content that stays is remembered exactly.
        torch.testing.assert_close(correction.correct(later(now, 9)), dense(q, k, v), **TINY)


def test_reshaped_formula() -> None:
    case = CASES["text"]
    first, second = call(case, *case.tensors()), call(case, *case.tensors())
    second = later(replace(second, block_map=first.block_map, context=first.context), 2)
    exact, lse = first.exact()
    rho = (first.lse - lse).exp().transpose(1, 2)[..., None]
    assert (rho <= 1 + 1e-6).all()
    residual = exact - rho * first.out
    scaled = (rho + 0.2).clamp(max=1) * second.out
    mean = torch.zeros_like(residual)
    for tokens in tile_tokens(case.grid.view, case.query_tile, case.grid.prefix):
        mean[:, tokens] = residual[:, tokens].mean(dim=1, keepdim=True)
    for kind, added in (("none", 0 * mean), ("tile", mean), ("full", residual)):
        memory = replace(first.context, memory={})
        correction = Reshaped(kind, drift=0.1)  # type: ignore[arg-type]
        correction.correct(replace(first, context=memory))
        found = correction.correct(replace(second, context=replace(memory, step=2)))
        torch.testing.assert_close(found, scaled + added, **TINY)


def test_reshaped_refreshes_when_the_map_or_the_step_says_so() -> None:
    case = CASES["ragged"]
    now, runs = call(case, *case.tensors()), []

    def exact() -> tuple[torch.Tensor, torch.Tensor]:
        runs.append(0)
        return now.exact()

    def count(step: int, changed: SparseCall) -> int:
        correction.correct(later(replace(changed, exact=exact), step))
        return len(runs)

    correction = Reshaped(refresh_every=5)
    counted = [count(step, now) for step in range(2, 9)]
    assert counted == [1, 1, 1, 1, 1, 2, 2]
    rebuilt = case.block_map(now.block_map.to_dense())
    assert count(9, replace(now, block_map=rebuilt)) == 2
    kept = now.block_map.to_dense()
    kept[..., 0, :] = ~kept[..., 0, :]
    kept[..., 0, 0] = True
    assert count(9, replace(now, block_map=case.block_map(kept))) == 3
    assert count(9, now) == 4
    assert count(3, now) == 5  # a step before the cached one belongs to another run


def test_reshaped_cache_bytes() -> None:
    grid = VideoGrid(5, 7, 6, prefix=3)
    case = Case(grid, heads=3)
    for residual in ("none", "tile", "full"):
        now = call(case, *(x.bfloat16() for x in case.tensors()))
        correction = Reshaped(residual)  # type: ignore[arg-type]
        correction.correct(now)
        cache = now.context.memory["reshaped"]
        held = sum(x.numel() * x.element_size() for x in (cache.rho, cache.residual) if x is not None)
        assert held == correction.cache_bytes(grid, case.query_tile, 3, 16)
    wan = VideoGrid(21, 45, 80)  # the figure of the docstring: 40 layers of 40 heads, two branches
    assert 61e9 < 2 * 40 * Reshaped("full").cache_bytes(wan, (2, 8, 8), 40, 128) < 64e9


@pytest.mark.parametrize(
    "fields",
    [{"residual": "half"}, {"drift": -0.1}, {"drift": float("nan")}, {"refresh_every": 0}, {"refresh_every": 1.5}],
    ids=repr,
)
def test_reshaped_refuses(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        Reshaped(**fields)  # type: ignore[arg-type]


@every_correction
def test_gradients(correction: Correction) -> None:
    case = CASES["text"]
    q, k, v = (x.requires_grad_() for x in case.tensors())
    now = call(case, q, k, v)
    correction.correct(now)
    correction.correct(later(now, 1)).square().mean().backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in (q, k, v))


def test_gradients_are_those_of_the_formula() -> None:
    """With keys equal within tiles the corrected output is the dense one, and so is its gradient for the values."""
    case = CASES["text"]
    q, k, v = case.tensors()
    k = flattened(case, k, case.query_tile)
    found, expected = (v.clone().requires_grad_() for _ in range(2))
    weight = torch.randn_like(v)
    (PooledComplement(gate=False).correct(call(case, q, k, found)) * weight).sum().backward()
    (dense(q, k, expected) * weight).sum().backward()
    torch.testing.assert_close(found.grad, expected.grad, **TINY)


def test_corrections_help_on_smooth_attention() -> None:
    """Queries and keys that depend on the place alone, values that do too: the mean of a tile says most about it."""
    grid = VideoGrid(4, 16, 16)
    places = torch.cartesian_prod(*(torch.arange(n).float() for n in grid.view))
    waves = places @ (0.3 * torch.randn(3, 64))
    q = k = (3 * torch.cat((waves.cos(), waves.sin()), dim=-1) / 8)[None, :, None]
    v = (places @ (0.2 * torch.randn(3, 128))).sin()[None, :, None]
    block_map = Radial(density=0.15, tile=(1, 4, 4)).plan(grid)
    out, lse = sparse_attention(q, k, v, block_map, impl="reference", return_lse=True)
    now = SparseCall(q, k, v, out, lse, block_map, Context(), lambda: (out, lse))
    errors = [(c.correct(now) - dense(q, k, v)).norm() for c in (PooledComplement(gate=False), PooledComplement())]
    assert max(errors) < 0.5 * (out - dense(q, k, v)).norm()
