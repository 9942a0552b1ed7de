"""One call on this GPU, for tools that watch one: `ncu`, `compute-sanitizer`, another ptxas.

    python benchmarks/gpu_call.py --case "ragged, head_dim 128, bfloat16, tiles 128 x 64"    # a small one, compared
    python benchmarks/gpu_call.py --problem 75k --tile 128                                   # a long one, in bfloat16

A small case has the name that `gpu.py` gives it in `errors`; what it prints is the error by the allowed one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from on_gpu import large, launches, plan, small

from vidsparse import bench

CASES = {str(case): case for case in plan.small_cases()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--case", choices=CASES, metavar="NAME", help='such as "whole, head_dim 64, float16, tiles 64 x 64"'
    )
    what.add_argument("--problem", choices=plan.GRIDS, help="forward and backward pass of a long video")
    parser.add_argument("--heads", type=int, default=3, help="of the long video")
    parser.add_argument("--head-dim", type=int, default=128, help="of the long video")
    parser.add_argument("--tile", type=int, choices=plan.TILES, default=128, help="of the long video")
    parser.add_argument("--density", type=float, default=0.1, help="of the long video")
    parser.add_argument("--launches", type=Path, help="of gpu_tune.py: take its winners in place of the table's rows")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no CUDA device")
    device = torch.device("cuda")
    torch.manual_seed(0)
    with launches.together(launches.winners(arguments.launches), device):
        if arguments.case:
            share, part = small.error(CASES[arguments.case], device)
            print(f"{arguments.case}: {share:.3f} of the allowed error, in {part}")
            sys.exit(share > 1)
        grid = plan.GRIDS[arguments.problem]
        block_map = plan.clustered_map(grid, plan.TILES[arguments.tile], arguments.density).to(device)
        tensors = bench.inputs(grid.tokens, arguments.heads, arguments.head_dim, torch.bfloat16, device)
        off = large.error(tensors, torch.randn_like(tensors[0]), block_map)
    print(f"relative error {off:.3g}, allowed {large.ALLOWED}")
    sys.exit(off > large.ALLOWED)


if __name__ == "__main__":
    main()
