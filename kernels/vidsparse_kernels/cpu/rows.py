"""The products that make up attention on a CPU: rows of queries, and the blocks of keys that they see."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch

from vidsparse_kernels.layout import TileLayout

ROWS = 256  # the most queries of one product
KEYS = 3072  # roughly the most keys of one product
SCORES = 3 * 2**17  # roughly the most scores of one product: 1.5 MiB


class Chunk(NamedTuple):
    """One product: key blocks, how many keys they hold, and which queries of the row see them; None for all."""

    blocks: list[int]
    keys: int
    seen_by: slice | None

    def part_of(self, x: torch.Tensor, dim: int = 0) -> torch.Tensor:
        """The part of a tensor that belongs to the queries that see this chunk; `dim` is the dimension of queries."""
        seen = self.seen_by
        return x if seen is None else x.narrow(dim, seen.start, seen.stop - seen.start)


class Row(NamedTuple):
    """Queries that are computed together, and the chunks that they see. All of them see the first chunk."""

    queries: torch.Tensor  # int64 [rows], positions in the sequence of queries
    chunks: list[Chunk]


class Products(NamedTuple):
    """The products of one sample's map. Key block 0 holds the valid extra tokens, key block 1 + i the key tile i."""

    order: torch.Tensor  # int64 [keys], positions in the sequence of keys, block after block
    sizes: list[int]  # tokens of each key block
    rows: list[list[Row]]  # for each head, or one list for all heads
    complete: bool  # whether every query sees a key

    def rows_of(self, head: int) -> list[Row]:
        return self.rows[head % len(self.rows)]


def products(counts: torch.Tensor, indices: torch.Tensor, layout: TileLayout, valid: int | None) -> Products:
    """The products of one sample's map.

    Args:
        counts: int32 [H|1, query tiles]. indices: int32 [H|1, query tiles, W].
        layout: geometry of the map.
        valid: how many prefix and suffix tokens of the keys are keys; None for all.
    """
    query, key = layout.query, layout.key
    blocks = [key.valid_extra_tokens(valid), *key.tile_tokens]
    sizes = [len(block) for block in blocks]
    extra = [0] if sizes[0] else []
    tiles = [*query.tile_tokens, query.extra_tokens]
    rows = []
    for of_counts, of_indices in zip(counts.tolist(), (indices + 1).tolist(), strict=True):
        lists = [[*extra, *listed[:count]] for count, listed in zip(of_counts, of_indices, strict=True)]
        lists.append([*extra, *range(1, len(blocks))])
        of_head = [row for row in _rows(tiles, lists, sizes) if row.chunks]
        # The longest rows first: buffers need not grow, and the threads finish with short ones.
        of_head.sort(key=lambda row: len(row.queries) * sum(chunk.keys for chunk in row.chunks), reverse=True)
        rows.append(of_head)
    complete = all(sum(len(row.queries) for row in of_head) == query.tokens for of_head in rows)
    return Products(torch.cat(blocks), sizes, rows, complete)


def _rows(tiles: list[torch.Tensor], lists: list[list[int]], sizes: list[int]) -> Iterator[Row]:
    """Join neighbouring tiles into rows, to collect their keys once, while they share half of the keys of each."""
    parts = [
        (part, blocks) for tile, blocks in zip(tiles, lists, strict=True) for part in tile.split(ROWS) if len(part)
    ]
    group: list[tuple[torch.Tensor, list[int]]] = []
    shared: set[int] = set()
    most = 0  # keys of one of the group
    for part, blocks in parts:
        joint = shared.intersection(blocks)
        fits = sum(len(tokens) for tokens, _ in group) + len(part) <= ROWS
        keys = sum(sizes[i] for i in blocks)
        if group and not (fits and 2 * sum(sizes[i] for i in joint) >= max(most, keys)):
            yield _row(group, shared, sizes)
            group = []
        shared, most = (joint, max(most, keys)) if group else (set(blocks), keys)
        group.append((part, blocks))
    if group:
        yield _row(group, shared, sizes)


def _row(group: list[tuple[torch.Tensor, list[int]]], shared: set[int], sizes: list[int]) -> Row:
    queries = group[0][0] if len(group) == 1 else torch.cat([tokens for tokens, _ in group])
    chunks = [Chunk(*cut, None) for cut in _cut([i for i in group[0][1] if i in shared], sizes, len(queries))]
    first = 0
    for tokens, blocks in group:
        own = slice(first, first + len(tokens))
        chunks += [Chunk(*cut, own) for cut in _cut([i for i in blocks if i not in shared], sizes, len(tokens))]
        first = own.stop
    return Row(queries, chunks)


def _cut(blocks: list[int], sizes: list[int], queries: int) -> list[tuple[list[int], int]]:
    """Cut a list of key blocks into runs of nearly equal length, with the number of keys of each; none for no keys."""
    total = sum(sizes[i] for i in blocks)
    number = math.ceil(total / min(KEYS, SCORES // queries))
    runs: list[list[int]] = [[] for _ in range(number)]
    before = 0
    for block in blocks:
        runs[before * number // total].append(block)
        before += sizes[block]
    return [(run, sum(sizes[i] for i in run)) for run in runs if run]
