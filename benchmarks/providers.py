"""Block-sparse attention of other packages beside our kernels: what each takes, whether it is right, how fast it is.

Each implementation is tried against the definition before its first result counts (`vidsparse_kernels.trial`), forward
and backward. One that refuses says why, and the others go on.

python benchmarks/providers.py --out results/providers.json    # on a GPU, with nvidia-cudnn-frontend and flash-attn-4
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from on_gpu.plan import GRIDS

from vidsparse.atomic import replacing
from vidsparse.attention import sparse_attention
from vidsparse.bench import inputs, seconds, time_attention
from vidsparse.grid import VideoGrid
from vidsparse.patterns import Radial

RESULTS = Path(__file__).parent / "results"


def row(impl: str, grid: VideoGrid, heads: int, head_dim: int, density: float, device: torch.device) -> dict[str, Any]:
    """R of the forward pass, and seconds of forward and backward; or why the implementation does not run."""
    torch.manual_seed(0)
    block_map = Radial(density=density).plan(grid).to(device)
    tensors = inputs(grid.tokens, heads, head_dim, torch.bfloat16, device)
    found: dict[str, Any] = {"impl": impl, "tokens": grid.tokens, "density": density}
    try:
        timing = time_attention(tensors, block_map, impl)
        found |= {"R": timing.ratio, "speedup": timing.speedup, "dense": timing.dense, "seconds": timing.sparse_seconds}
        found["seconds_with_gradients"] = seconds(with_gradients(impl, tensors, block_map), device)
    except (NotImplementedError, ImportError, RuntimeError) as error:
        found["refused"] = " ".join(str(error).split())[:500]
    return found


def with_gradients(impl: str, tensors: list[torch.Tensor], block_map: Any) -> Callable[[], object]:
    leaves = [x.detach().requires_grad_() for x in tensors]

    def call() -> object:
        out = sparse_attention(leaves[0], leaves[1], leaves[2], block_map, impl=impl)
        return torch.autograd.grad(out, leaves, out.detach())

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--impl", nargs="+", default=["triton", "cudnn", "fa4", "flex"])
    parser.add_argument("--density", nargs="+", type=float, default=[0.1, 0.2, 0.4])
    parser.add_argument("--view", nargs=3, type=int, default=GRIDS["75k"].view, help="latent frames, rows and columns")
    parser.add_argument("--heads", type=int, default=3)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=RESULTS / "providers.json")
    given = parser.parse_args()
    device, grid = torch.device(given.device), VideoGrid(*given.view)
    rows = []
    for density in given.density:
        for impl in given.impl:
            rows.append(row(impl, grid, given.heads, given.head_dim, density, device))
            print(json.dumps(rows[-1]), flush=True)
            with replacing(given.out) as temporary:  # after each, so that a crash of one keeps the others
                temporary.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
