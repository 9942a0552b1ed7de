"""What choosing a map costs: seconds of `select`, as a share of the dense attention that the map saves.

python benchmarks/selection.py
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

import torch
from torch.nn.functional import scaled_dot_product_attention

from vidsparse import (
    BlockMap,
    ContentPattern,
    Context,
    ExactBlocks,
    MixtureOfBlocks,
    SpatialTemporal,
    TopBlocks,
    VideoGrid,
    head_groups,
)
from vidsparse.atomic import replacing
from vidsparse.bench import inputs, seconds

RESULTS = Path(__file__).parent / "results"
GRIDS = {"shapes, 129 frames": (VideoGrid(33, 16, 16), 3, 64), "Wan 480p, 81 frames": (VideoGrid(21, 30, 52), 2, 128)}


def patterns(density: float) -> dict[str, ContentPattern]:
    return {
        "TopBlocks": TopBlocks(density),
        "TopBlocks, variance": TopBlocks(density, variance=True),
        "TopBlocks, top-p": TopBlocks(top_p=density),
        "MixtureOfBlocks, training-free": MixtureOfBlocks.training_free(),
        "MixtureOfBlocks, trained": MixtureOfBlocks.trained(),
        "SpatialTemporal": SpatialTemporal(density),
        "ExactBlocks": ExactBlocks(density),
    }


def lists(block_map: BlockMap) -> object:
    """What the implementation for CPUs reads of a map that it has not seen before."""
    return block_map.counts.tolist(), block_map.indices.tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--density", type=float, default=0.2)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    device, rows = torch.device(arguments.device), []
    torch.manual_seed(0)
    for size, (grid, heads, head_dim) in GRIDS.items():
        query, key, value = inputs(grid.tokens, heads, head_dim, getattr(torch, arguments.dtype), device)
        heads_first = [x.transpose(1, 2) for x in (query, key, value)]
        context = Context(heads=heads, value=value)
        with torch.no_grad():
            dense = seconds(partial(scaled_dot_product_attention, *heads_first), device)
            for name, pattern in patterns(arguments.density).items():
                groups = head_groups(pattern.select(query, key, grid, context), heads)
                density = sum(len(g.heads) * g.block_map.token_density for g in groups) / heads
                choosing = seconds(partial(pattern.select, query, key, grid, context), device)
                reading = seconds(lambda groups=groups: [lists(g.block_map) for g in groups], device)  # type: ignore[misc]
                row = {"size": size, "pattern": name, "density": density, "dense_s": dense, "select_s": choosing}
                row |= {"lists_s": reading, "share_of_saved": choosing / (dense * (1 - density))}
                rows.append({k: float(f"{v:.3g}") if isinstance(v, float) else v for k, v in row.items()})
                print(rows[-1], flush=True)
    settings = vars(arguments) | {"torch": torch.__version__, "threads": torch.get_num_threads()}
    text = json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n"
    with replacing(RESULTS / "selection.json") as temporary:
        temporary.write_text(text)


if __name__ == "__main__":
    main()
