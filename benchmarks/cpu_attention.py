"""R = time_sparse / (time_dense * density) of impl "cpu" against dense SDPA and compiled FlexAttention, in one run.

    python benchmarks/cpu_attention.py                # everything, about 15 minutes on two cores
    python benchmarks/cpu_attention.py --tokens 8192  # a minute without FlexAttention: add --no-flex

FlexAttention gets the same map as a `BlockMask` on tokens that already stand in tile order, so its time holds no
permutation. Each round times all contenders one after the other; the median over rounds of the ratio is reported.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from vidsparse import BlockMap, Radial, VideoGrid, sparse_attention
from vidsparse.atomic import replacing

GRIDS = {8192: VideoGrid(32, 16, 16), 32768: VideoGrid(32, 32, 32)}
TILE = (2, 8, 8)


def seconds(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def processor() -> str:
    """Name, family and model as Linux has them: the name alone may stand for several generations."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return platform.processor()
    entries = [line.partition(":") for line in path.read_text().splitlines()]
    known = {key.strip(): value.strip() for key, _, value in entries}
    return ", ".join(f"{key} {known[key]}" for key in ("model name", "cpu family", "model") if key in known)


def flex_mask(block_map: BlockMap) -> BlockMask:
    """The map for tokens in tile order: every tile is one block of 128."""
    counts, indices = block_map.counts, block_map.indices
    wide = torch.zeros(1, 1, counts.shape[-1], block_map.key_tiles, dtype=torch.int32)
    wide[..., : indices.shape[-1]] = indices
    return BlockMask.from_kv_blocks(torch.zeros_like(counts), torch.zeros_like(wide), counts, wide, BLOCK_SIZE=128)


def measure(tokens: int, head_dim: int, dtype: torch.dtype, rounds: int, with_flex: bool) -> list[dict[str, object]]:
    grid = GRIDS[tokens]
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, tokens, 1, head_dim, dtype=dtype) for _ in range(3))
    heads_first = [x.transpose(1, 2) for x in (query, key, value)]
    rows = []
    for density in (0.1, 0.25, 0.5):
        block_map = Radial(density=density, tile=TILE).plan(grid)
        contenders: dict[str, Callable[[], object]] = {
            "dense": lambda: scaled_dot_product_attention(*heads_first),
            "cpu": lambda block_map=block_map: sparse_attention(query, key, value, block_map, impl="cpu"),
        }
        if with_flex:
            torch._dynamo.reset()
            compiled, mask = torch.compile(flex_attention, dynamic=False), flex_mask(block_map)
            contenders["flex"] = lambda compiled=compiled, mask=mask: compiled(*heads_first, block_mask=mask)
        with torch.no_grad():
            for function in contenders.values():
                function()
            times = [{name: seconds(function) for name, function in contenders.items()} for _ in range(rounds)]
        row: dict[str, object] = {
            "tokens": tokens,
            "head_dim": head_dim,
            "dtype": str(dtype).removeprefix("torch."),
            "density": round(block_map.density, 4),
            "dense_s": round(statistics.median(t["dense"] for t in times), 4),
        }
        for name in list(contenders)[1:]:
            ratio = statistics.median(t[name] / t["dense"] for t in times)
            row |= {f"{name}_R": round(ratio / block_map.density, 3), f"{name}_speedup": round(1 / ratio, 2)}
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, choices=GRIDS, action="append")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-flex", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cpu_attention.json")
    arguments = parser.parse_args()
    rows = [
        row
        for tokens in arguments.tokens or GRIDS
        for head_dim in (64, 128)
        for dtype in (torch.float32, torch.bfloat16)
        for row in measure(tokens, head_dim, dtype, arguments.rounds, not arguments.no_flex)
    ]
    machine = {"torch": torch.__version__, "threads": torch.get_num_threads(), "processor": processor()}
    with replacing(arguments.out) as temporary:
        temporary.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
