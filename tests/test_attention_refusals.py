"""Bad input of attention: what was passed, what is expected."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from against_float64 import Case

from vidsparse import BlockMap, Dense, VideoGrid, sparse_attention

HEAD_DIM = 16
GRID = VideoGrid(3, 5, 7, suffix=4)
TWO_GRIDS = Case(GRID, key_grid=VideoGrid(5, 5, 7)).block_map(torch.ones(1, 1, 8, 12, dtype=torch.bool))


def good(**changes: Any) -> dict[str, Any]:
    """Arguments of a valid call with 2 samples and 2 heads, some of them changed."""
    query, key, value = torch.randn(3, 2, GRID.tokens, 2, HEAD_DIM).unbind()
    return {"query": query, "key": key, "value": value, "block_map": Dense().plan(GRID), **changes}


def other(shape: tuple[int, ...] = (2, GRID.tokens, 2, HEAD_DIM), **settings: Any) -> torch.Tensor:
    return torch.zeros(shape, **settings)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"query": other((GRID.tokens, 2, 16))},
            ValueError,
            r"query has shape \(109, 2, 16\), expected \[batch, tokens",
        ),
        ({"value": other((2, GRID.tokens, 32))}, ValueError, r"value has shape \(2, 109, 32\), expected"),
        ({"key": other((1, 109, 2, 16))}, ValueError, r"key is torch\.float32 \(1, 109, 2, 16\) on cpu, but query"),
        ({"value": other((2, 109, 2, 8))}, ValueError, r"value is .* batch, heads, head_dim, .* must be the same"),
        (
            {"key": other((2, 50, 2, 16))},
            ValueError,
            r"for keys of .* with 109 tokens, but key has 50; .* key_grid",
        ),
        ({"value": other((2, 50, 2, 16))}, ValueError, r"for keys of .* with 109 tokens, but value has 50"),
        ({"block_map": TWO_GRIDS}, ValueError, r"for keys of VideoGrid\(frames=5, .* 175 tokens, but key has 109"),
        ({"block_map": TWO_GRIDS.transpose()}, ValueError, r"for queries of .* 175 tokens, but query has 109"),
        ({"block_map": replace(TWO_GRIDS, key_grid=GRID)}, ValueError, r"indices hold .*, but .* key tiles 0 to "),
        ({"value": other(dtype=torch.bfloat16)}, ValueError, r"value is torch\.bfloat16 .* must be the same"),
        ({"key": other(device="meta")}, ValueError, r"key is .* on meta, but query .* on cpu"),
        ({"query": other(dtype=torch.int64)}, TypeError, r"query must be a floating-point tensor, got torch\.int64"),
        ({"key": [1.0, 2.0]}, TypeError, r"key must be a floating-point tensor, got list"),
        (
            {"block_map": Dense().plan(VideoGrid(3, 5, 7))},
            ValueError,
            r"for queries of VideoGrid\(.*\) with 105 tokens, but query has 109",
        ),
        ({"extra_valid": torch.tensor([1])}, ValueError, r"extra_valid=\[1\] must hold one number from 0 to 4"),
        ({"extra_valid": torch.tensor([1, 5])}, ValueError, r"extra_valid=\[1, 5\] must hold one number from 0 to 4"),
        ({"extra_valid": torch.tensor([-1, 2])}, ValueError, r"extra_valid=\[-1, 2\] must hold"),
        ({"extra_valid": torch.tensor([1.0, 2.0])}, TypeError, r"extra_valid=.* must be an integer tensor"),
        ({"extra_valid": torch.tensor([True, False])}, TypeError, r"extra_valid=.* must be an integer tensor"),
        ({"extra_valid": [1, 2]}, TypeError, r"extra_valid=\[1, 2\] must be an integer tensor"),
        ({"scale": float("nan")}, ValueError, r"scale=nan must be finite; leave it out"),
        ({"scale": float("-inf")}, ValueError, r"scale=-inf must be finite"),
        ({"impl": "fast"}, ValueError, r"impl='fast' is unknown"),
        ({"impl": "triton"}, NotImplementedError, r"impl='triton' takes head_dim 32, .*, not 16; use impl='auto'"),
    ],
    ids=[
        "query-of-rank-3",
        "value-of-rank-3",
        "key-of-other-batch",
        "value-of-other-width",
        "key-of-other-length",
        "value-of-other-length",
        "map-of-other-keys",
        "map-of-other-queries",
        "lists-of-other-keys",
        "value-of-other-dtype",
        "key-on-other-device",
        "integer-query",
        "key-is-a-list",
        "map-of-another-grid",
        "extra_valid-for-one-sample",
        "extra_valid-too-large",
        "extra_valid-negative",
        "extra_valid-float",
        "extra_valid-bool",
        "extra_valid-list",
        "scale-nan",
        "scale-infinite",
        "unknown-impl",
        "triton",
    ],
)
def test_bad_input(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sparse_attention(**good(**changes))


@pytest.mark.parametrize("shape", [(3, 1), (1, 3), (4, 2)], ids=["three-samples", "three-heads", "four-samples"])
def test_a_map_of_another_batch_or_number_of_heads(shape: tuple[int, int]) -> None:
    tile = Dense().plan(GRID).query_tile
    tiles = torch.Size(GRID.tiles(tile)).numel()
    block_map = BlockMap.from_dense(torch.ones(*shape, tiles, tiles, dtype=torch.bool), GRID, tile)
    with pytest.raises(ValueError, match=f"batch {shape[0]} and {shape[1]} heads, the query batch 2 and 2 heads"):
        sparse_attention(**good(block_map=block_map))
