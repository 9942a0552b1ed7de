"""The machine code of every tuned kernel, executed: attention, its gradients, lists, pooling and selection.

PTX is the compiler's output down to ptxas; `emulator` says what is checked while it runs. Numbers are held against
float64, and asynchronous work done early and late must give the same bits.
"""

from __future__ import annotations

import itertools
import math
from contextlib import ExitStack
from dataclasses import dataclass, replace
from unittest import mock

import against_float64
import pytest
import torch
from against_float64 import Case, Results, assert_close, plain

from vidsparse import BlockMap, VideoGrid, sparse_attention

pytest.importorskip("triton")
from emulator import ORDERS, Chip, Order, emulated

from vidsparse_kernels import reference
from vidsparse_kernels.gpu import columns, configs, lists, operator
from vidsparse_kernels.layout import place_bits
from vidsparse_kernels.selection import pooling, pooling_kernel, select, select_kernel
from vidsparse_kernels.selection.rule import Rule

pytestmark = pytest.mark.machine_code

TEXT = VideoGrid(3, 9, 10, prefix=3, suffix=66)
WHOLE = VideoGrid(4, 16, 16)
TILES = {128: (2, 8, 8), 64: (1, 8, 8)}
BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
ATTENTION = ("forward_kernel", "query_gradient_kernel", "key_gradient_kernel")
# What carries operands and multiplies them on each chip: a kernel without them is not the one that was tuned.
UNITS = {
    80: ("cp.async", "mma.m16n8k16"),
    89: ("cp.async", "mma.m16n8k16"),
    90: ("cp.async.bulk.tensor.load", "wgmma.mma_async"),
    120: ("cp.async", "mma.m16n8k16"),
}


@dataclass(frozen=True)
class Tuned:
    """A case of attention on a chip.

    Attributes:
        divided: columns of keys are divided into pieces.
        bounded: keys are measured, and the logits of the first sample alone are small enough to need no maximum.
    """

    chip: int
    dtype: torch.dtype
    case: Case
    divided: bool = False
    bounded: bool = False

    def tensors(self) -> list[torch.Tensor]:
        """Query, key, value and the gradient of out."""
        query, *others = self.case.tensors(4)
        if self.bounded:
            query[1:] *= 8
        return [query, *others]

    def __str__(self) -> str:
        case = self.case
        rows, keys = (math.prod(tile or ()) for tile in (case.query_tile, case.key_tile))
        of_keys = f"-{case.key_grid.tokens}-keys" if case.key_grid else ""
        kind = f"{case.grid.tokens}-tokens{of_keys}" + "-divided" * self.divided + "-bounded" * self.bounded
        return f"sm_{self.chip}-{str(self.dtype)[6:]}-{case.head_dim}-{rows}x{keys}-{kind}"


def text(head_dim: int, rows: int, keys: int, **changes: object) -> Case:
    """Two samples with text of other lengths, on a ragged grid."""
    case = Case(TEXT, TILES[rows], TILES[keys], batch=2, heads=1, head_dim=head_dim, extra_valid=(69, 5))
    return replace(case, **changes)  # type: ignore[arg-type]


def whole(head_dim: int, rows: int, keys: int, **changes: object) -> Case:
    """Whole tiles alone, two heads with a map each, one query tile that sees nothing."""
    case = Case(WHOLE, TILES[rows], TILES[keys], heads=2, map_heads=2, head_dim=head_dim, empty=(3,))
    return replace(case, **changes)  # type: ignore[arg-type]


PAIRS = list(itertools.product(TILES, TILES))
CASES = [
    *(Tuned(90, BF16, text(head_dim, *pair)) for head_dim in (32, 96) for pair in PAIRS),
    *(Tuned(90, BF16, text(head_dim, *pair), bounded=True) for head_dim in (64, 128) for pair in PAIRS),
    *(Tuned(90, F16, whole(head_dim, volume, volume)) for head_dim in (64, 128) for volume in TILES),
    # Nothing but empty lists and text that is no key in one sample; maps for each sample and head.
    Tuned(90, F16, text(64, 128, 128, extra_valid=(0, 69), empty=(0, 1))),
    Tuned(90, BF16, text(96, 64, 128, heads=2, map_batch=2, map_heads=2), divided=True),
    Tuned(90, BF16, text(128, 128, 128, heads=2, map_heads=2), divided=True),
    # Tiles of other sides.
    Tuned(90, BF16, Case(VideoGrid(33, 3, 5), (32, 2, 2), (32, 2, 2), heads=1, head_dim=64)),
    Tuned(90, BF16, Case(VideoGrid(1, 1, 300), (1, 1, 128), (1, 1, 128), heads=1, head_dim=128)),
    Tuned(90, BF16, Case(VideoGrid(5, 6, 7, suffix=1), (4, 4, 4), (2, 8, 8), heads=1, head_dim=64)),
    # Keys of another grid than the queries.
    Tuned(90, BF16, text(64, 128, 64, grid=VideoGrid(1, 9, 10, prefix=2), key_grid=TEXT), bounded=True),
    Tuned(90, F16, whole(128, 64, 128, grid=VideoGrid(1, 7, 9, suffix=5), key_grid=VideoGrid(3, 9, 16), empty=())),
    Tuned(80, BF16, text(64, 64, 128, grid=VideoGrid(2, 7, 5), key_grid=TEXT), divided=True),
    *(
        Tuned(chip, dtype, text(head_dim, volume, volume), bounded=dtype == BF16 and head_dim == 128)
        for chip, dtype in ((80, BF16), (89, F16), (120, BF16))
        for head_dim in (64, 128)
        for volume in TILES
    ),
    Tuned(80, F16, whole(32, 64, 128), divided=True),
    Tuned(120, BF16, whole(96, 128, 64)),
    # float32 has the same rows on every chip, but for those that do not fit.
    Tuned(80, F32, text(64, 64, 64, batch=1, extra_valid=(5,))),
    Tuned(90, F32, whole(64, 128, 128, grid=VideoGrid(2, 9, 16), empty=())),
    Tuned(90, F32, whole(128, 128, 128, grid=VideoGrid(2, 8, 16), empty=())),
    Tuned(120, F32, whole(128, 64, 64, grid=VideoGrid(2, 8, 16), empty=())),
]


def rows_of_the_table(tuned: Tuned) -> set[tuple[int, str, int, int, int]]:
    """The rows that a case launches."""
    case, rows = tuned.case, configs.TABLE[configs.family(tuned.chip), "forward"]
    size = tuned.dtype.itemsize
    row = min(dim for itemsize, dim in rows if itemsize == size and dim >= case.head_dim)
    held = dict.fromkeys(("forward", "query_gradient"), case.query_tile) | {"key_gradient": case.key_tile}
    chip = tuned.chip if size == 2 else 0  # float32: see CASES
    return {(chip, kernel, size, row, math.prod(tile or ())) for kernel, tile in held.items()}


def test_cases_cover_the_table() -> None:
    every = {
        (chip if size == 2 else 0, kernel, size, row, held)
        for chip in UNITS
        for kernel in configs.KERNELS
        for size, row in configs.TABLE[configs.family(chip), kernel]
        for held in TILES
    }
    assert set().union(*map(rows_of_the_table, CASES)) == every


def both_passes(tuned: Tuned, block_map: BlockMap, tensors: list[torch.Tensor], order: Order) -> tuple[Results, Chip]:
    """out, lse and the gradients of a loss through both, from machine code."""
    fresh = replace(block_map)  # a map keeps its lists: here each order makes its own

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return sparse_attention(q, k, v, fresh, extra_valid=tuned.case.valid, impl="triton", return_lse=True)

    with ExitStack() as stack:
        if tuned.divided:
            stack.enter_context(mock.patch.multiple(columns, SPLIT=0.3, SLOTS=4))
        stack.enter_context(mock.patch.object(operator, "PAYS", 0 if tuned.bounded else 2**31))
        chip = stack.enter_context(emulated(tuned.chip, order))
        return against_float64.run(attention, tensors, tuned.dtype), chip


@pytest.mark.parametrize("tuned", CASES, ids=str)
def test_attention(tuned: Tuned) -> None:
    case = tuned.case
    tensors, block_map = tuned.tensors(), case.block_map()
    mask = block_map.token_mask(case.valid)

    def exact(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return reference.attention(q, k, v, mask, case.head_dim**-0.5)

    rounded = [x.to(tuned.dtype) for x in tensors]
    expected = against_float64.run(exact, rounded, torch.float64)
    bound = against_float64.run(plain(mask), tensors, tuned.dtype)
    first: Results = {}
    for order in ORDERS if tuned.chip == 90 else ORDERS[::2]:  # others have no asynchronous products
        found, chip = both_passes(tuned, block_map, tensors, order)
        first = first or found
        assert all(torch.equal(first[name], x) for name, x in found.items()), f"other bits where work is {order}"
    assert_close(first, expected, bound, tuned.dtype)
    launched_kernels = {launched.kernel for launched in chip.launches}
    assert ("add_slots_kernel" in launched_kernels) == tuned.divided
    assert ("key_norms_kernel" in launched_kernels) == tuned.bounded
    for launched in chip.launches if tuned.dtype.itemsize == 2 else []:
        if launched.kernel in ATTENTION:
            for unit in UNITS[tuned.chip]:
                assert any(name.startswith(unit) for name in launched.counts), f"{launched.kernel} without {unit}"


# Lists, selection, pooling


@pytest.mark.parametrize("chip", UNITS)
@pytest.mark.parametrize("width", [3, 200, 3000])
def test_whole_tiles_come_first(chip: int, width: int) -> None:
    view, tile, columns_of_tiles = (9, 60, 100), (2, 8, 8), 13
    tiles = 5 * 8 * columns_of_tiles
    width = min(width, tiles)
    indices = torch.rand(7, tiles).argsort(dim=-1)[:, :width].sort(dim=-1).values.int().contiguous()
    counts = torch.randint(0, width + 1, (7,), dtype=torch.int32)
    with emulated(chip):
        whole_counts, places = lists.whole_first(counts, indices, view, tile)
    row_bits, column_bits = place_bits(view, tile)
    for row, count in enumerate(counts.tolist()):
        listed = indices[row, :count]
        f, y, x = listed // (8 * columns_of_tiles), listed // columns_of_tiles % 8, listed % columns_of_tiles
        inside = (2 * f + 2 <= 9) & (8 * y + 8 <= 60) & (8 * x + 8 <= 100)
        place = ((f << row_bits | y) << column_bits) | x
        assert int(whole_counts[row]) == int(inside.sum())
        assert torch.equal(places[row, :count], torch.cat([place[inside], place[~inside]]))


@pytest.mark.parametrize(("chip", "tiles"), [(80, 1), (80, 2500), (89, 7), (90, 33), (90, 900), (120, 100)])
def test_selection(chip: int, tiles: int) -> None:
    scores = torch.randn(2, 2, 5, tiles)
    scores[0, 0, 0] = 0.5  # ties
    scores[0, 0, 1, ::2] = scores[0, 1, 2] = float("-inf")
    rules = [Rule("top_k", 3), Rule("top_k", 90), Rule("top_p", 0.7), Rule("threshold", 0.02)]
    forced_tiles = torch.rand(1, 2, 5, tiles) < 0.1
    for rule, forced in itertools.product(rules, (None, forced_tiles)):
        with emulated(chip):
            counts, indices = select_kernel.select_tiles(scores, rule, forced)
        kept = torch.zeros(scores.shape, dtype=torch.bool)
        for place in itertools.product(*map(range, counts.shape)):
            kept[place][indices[place][: int(counts[place])].long()] = True
        assert torch.equal(kept.sum(dim=-1), counts), "a tile is listed twice"
        wanted_counts, wanted = select.select_tiles(scores, rule, forced)
        if rule.kind != "top_p":
            assert torch.equal(counts, wanted_counts)
            rows = zip(indices.flatten(0, -2), wanted.flatten(0, -2), counts.flatten().tolist(), strict=True)
            assert all(torch.equal(found[:count], right[:count]) for found, right, count in rows)
            continue
        # Sums of float32 in another order may take one tile more or less.
        weights = scores.double().softmax(dim=-1).nan_to_num(0.0)
        free = kept if forced is None else kept & ~forced
        mass, least = (weights * kept).sum(dim=-1), weights.masked_fill(~free, float("inf")).amin(dim=-1)
        some = weights.sum(dim=-1) > 0
        assert (mass[some] > rule.amount - 1e-5).all() and (mass - least)[some].max() < rule.amount + 1e-5


@pytest.mark.parametrize("chip", UNITS)
@pytest.mark.parametrize(
    ("dtype", "head_dim", "volume"), [(BF16, 128, 128), (BF16, 64, 64), (F16, 96, 128), (F32, 32, 64)]
)
def test_pooling(chip: int, dtype: torch.dtype, head_dim: int, volume: int) -> None:
    x, tile = torch.randn(2, TEXT.tokens, 3, head_dim).to(dtype), TILES[volume]
    with emulated(chip):
        found = pooling_kernel.tile_means(x, TEXT.view, tile, TEXT.prefix)
    torch.testing.assert_close(found, pooling.tile_means(x, TEXT.view, tile, TEXT.prefix), rtol=1e-5, atol=1e-6)
