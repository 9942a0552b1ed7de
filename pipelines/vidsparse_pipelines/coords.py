"""The grid of tokens whose coordinates are known."""

from __future__ import annotations

from itertools import pairwise

import torch

from vidsparse.grid import VideoGrid


def grid_of_coords(coords: torch.Tensor) -> VideoGrid:
    """The grid of tokens at these (time, row, column) coordinates [3, tokens].

    Frames come in runs of rising time. The longest run is the video; the others are conditions.

    Raises:
        NotImplementedError: coordinates in no raster order.
    """
    coords = coords.float().cpu()
    rows, columns = coords[1].unique(), coords[2].unique()
    size = len(rows) * len(columns)
    times = coords[0, ::size]
    if not torch.equal(torch.cartesian_prod(times, rows, columns).T, coords):
        raise NotImplementedError("the video coordinates are those of no grid of frames x height x width")
    falls = (times.diff() <= 0).nonzero().flatten() + 1
    start, end = max(pairwise([0, *falls.tolist(), len(times)]), key=lambda run: run[1] - run[0])
    return VideoGrid(end - start, len(rows), len(columns), start * size, (len(times) - end) * size)
