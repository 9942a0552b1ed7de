"""The lists that Triton's kernels walk: packed places, whole tiles first, columns divided into pieces."""

from __future__ import annotations

import pytest
import torch

from vidsparse import BlockMap, VideoGrid

pytest.importorskip("triton")
from vidsparse_kernels.gpu import columns, lists
from vidsparse_kernels.layout import Triple, place_bits, tile_counts

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("slots", [0, 1 / 8, 8])
@pytest.mark.parametrize(("split", "programs"), [(0.3, 6), (1, 6), (4, 6), (0.3, 12_000)])
def test_pieces_hold_every_pair_once_and_are_bounded(
    split: float, programs: int, slots: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "SPLIT", split)
    monkeypatch.setattr(columns, "SLOTS", slots)
    kept = torch.rand(2, 3, 40, 40) < 0.2
    kept[..., 0] = True  # a sink
    kept[..., 5] = False
    block_map = BlockMap.from_dense(kept, VideoGrid(1, 40, 64), (1, 8, 8))
    work = block_map.to(DEVICE).lists.columns(programs)
    capacity = work.places.shape[1]
    limit = columns.piece_limit(capacity, 40, programs)
    most_slots = columns.slot_count(40, 40, capacity, limit)
    assert most_slots <= 40 * slots
    assert (most_slots == 0) == (limit >= 40 or slots == 0) == (programs > 6 or split == 4 or slots == 0)
    found = torch.zeros(6, 40, 40, dtype=torch.int32)
    for group in range(6):
        used = [piece for piece in work.pieces[group].tolist() if piece[0] >= 0]
        for column, part, begin, end, slot in used:
            assert end - begin <= limit or slots < 8
            places = work.places[group, begin:end].long().cpu()
            queries = (places >> 3) * 8 + places % 8  # 5 rows of 8 tiles
            assert (queries[1:] > queries[:-1]).all()
            found[group, queries, column] += 1
            first, number = work.slots[group, column].tolist()
            assert slot == (first + part if number else -1)
        taken = [slot for *_, slot in used if slot >= 0]
        assert taken == sorted(set(taken)) and len(taken) <= most_slots
        assert taken or most_slots < 8
    assert torch.equal(found, block_map.to_dense().flatten(0, 1).int())


def test_slots_take_an_eighth_of_the_gradients_at_most() -> None:
    tiles, listed, heads = 900, 90, 24  # 115,000 tokens at density 0.1
    limit = columns.piece_limit(tiles * listed, tiles, heads)
    slots = columns.slot_count(tiles, tiles, tiles * listed, limit)
    assert 0 < 4 * slots <= tiles / 8  # a slot has two float32 sums for a tile, the gradients two 2-byte rows a token


def test_whole_tiles_come_first_and_stay_in_order() -> None:
    view, tile = (3, 9, 16), (2, 8, 8)  # 2 x 2 x 2 tiles: a place is the tile's number in binary
    counts = torch.tensor([[[8, 3, 0]]], dtype=torch.int32, device=DEVICE)
    listed = torch.tensor([[[[*range(8)], [1, 2, 5, 9, 9, 9, 9, 9], [9] * 8]]], dtype=torch.int32, device=DEVICE)
    whole, ordered = lists.whole_first(counts, listed, view, tile)
    assert whole.tolist() == [[[2, 1, 0]]]
    assert ordered[0, 0, 0].tolist() == [*range(8)] and ordered[0, 0, 1, :3].tolist() == [1, 2, 5]
    # 5 x 1 x 2 tiles, of which those of the last frame are cut: 0 to 7 are whole in frames alone.
    whole, ordered = lists.whole_first(counts, listed, (9, 3, 16), (2, 2, 8))
    assert whole.tolist() == [[[4, 2, 0]]]
    assert ordered[0, 0, 0].tolist() == [0, 1, 4, 5, 2, 3, 6, 7] and ordered[0, 0, 1, :3].tolist() == [1, 5, 2]


@pytest.mark.parametrize("view", [(1, 1, 300), (5, 13, 17), (1, 9, 8), (33, 3, 5)])
@pytest.mark.parametrize("tile", [(1, 1, 128), (2, 8, 8), (32, 2, 2)])
def test_a_place_says_where_a_tile_stands(view: Triple, tile: Triple) -> None:
    row_bits, column_bits = place_bits(view, tile)
    frames, rows, width = tile_counts(view, tile)
    for number, entry in enumerate(columns.every_place(view, tile, torch.device("cpu")).tolist()):
        place = entry >> row_bits + column_bits, entry >> column_bits & 2**row_bits - 1, entry & 2**column_bits - 1
        assert place == (number // (rows * width), number // width % rows, number % width)
    assert number == frames * rows * width - 1


def test_a_video_of_too_many_tiles_is_refused() -> None:
    with pytest.raises(ValueError, match="too many tiles of"):
        place_bits((2**12, 2**14, 2**14), (1, 8, 8))
