"""The Triton kernels on this GPU: first whether they are right, then how fast, against the best dense attention.

    python benchmarks/gpu.py            # everything, some minutes; results/gpu_<name>.json and .md
    python benchmarks/gpu.py --quick    # correctness, and one problem

R = seconds of sparse / (seconds of the fastest dense * density), forward and backward each against its own. What gave
wrong numbers gets no time. Needs torch and triton alone: PYTHONPATH=.:kernels suffices.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
import triton

from vidsparse.attention import sparse_attention
from vidsparse.block_map import BlockMap
from vidsparse.grid import Tile, VideoGrid
from vidsparse.patterns import Radial
from vidsparse.profile import dense_attention, inputs, seconds
from vidsparse.replacing import replacing
from vidsparse_kernels.pooling import pooled_scores
from vidsparse_kernels.select import Rule, forced_tiles, select_tiles
from vidsparse_kernels.tiles import tile_tokens

CUDA = torch.device("cuda")
GRIDS = {"115k": VideoGrid(30, 48, 80), "75k": VideoGrid(21, 45, 80)}
TILES: dict[int, Tile] = {128: (2, 8, 8), 64: (1, 8, 8)}
DENSITIES = (0.05, 0.1, 0.2, 0.5, 1.0)
SMALL = VideoGrid(5, 13, 17, prefix=5, suffix=70)
HEAD_DIMS = (32, 64, 96, 128)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def random_map(grid: VideoGrid, tile: Tile, density: float, query_tile: Tile | None = None) -> BlockMap:
    """Every query tile sees as many key tiles as the density asks for, anywhere, and its own."""
    rows, columns = (math.prod(grid.tiles(t)) for t in (query_tile or tile, tile))
    number = max(1, round(density * columns))
    scores = torch.rand(1, 1, rows, columns)
    scores[..., torch.arange(rows), torch.arange(rows) * columns // rows] = 2.0
    counts, indices = select_tiles(scores, Rule("top_k", number))
    return BlockMap(grid, query_tile or tile, tile, counts, indices).to(CUDA)


def clustered_map(grid: VideoGrid, tile: Tile, density: float) -> BlockMap:
    """Neighbours in space and time."""
    return Radial(density=density, tile=tile).plan(grid).to(CUDA)


# Correctness

Pass = Callable[[list[torch.Tensor]], tuple[torch.Tensor, torch.Tensor]]


def gradients(attention: Pass, tensors: list[torch.Tensor], grad_out: torch.Tensor) -> dict[str, torch.Tensor]:
    """out, lse, dq, dk and dv in float64 of a loss through both outputs."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    out, lse = attention(leaves)
    weights = torch.linspace(-1, 1, lse.numel(), device=CUDA, dtype=lse.dtype).view_as(lse)
    torch.autograd.backward((out, lse), (grad_out.to(out.dtype), torch.where(lse.isneginf(), 0.0, weights)))
    found = dict(out=out, lse=lse) | dict(zip(("dq", "dk", "dv"), (x.grad for x in leaves), strict=True))
    return {name: x.detach().double() for name, x in found.items() if x is not None}


def error_of_small(head_dim: int, dtype: torch.dtype, query_tile: Tile, key_tile: Tile) -> tuple[float, str]:
    """The worst error against float64, as a multiple of what plain attention in this dtype has, and of which result."""
    block_map = random_map(SMALL, key_tile, 0.4, query_tile)
    valid = torch.tensor([75, 7], device=CUDA, dtype=torch.int32)
    tensors = [torch.randn(2, SMALL.tokens, 2, head_dim, device=CUDA, dtype=dtype) for _ in range(4)]
    *operands, grad_out = tensors

    def by(impl: str) -> Pass:
        def attention(x: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
            return sparse_attention(*x, block_map, extra_valid=valid, impl=impl, return_lse=True)  # type: ignore[call-overload]

        return attention

    exact = gradients(by("reference"), [x.double() for x in operands], grad_out)
    mask = block_map.token_mask(valid)

    def plain(x: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        q, k, v = (y.transpose(1, 2) for y in x)
        logits = (q.float() @ k.float().mT * head_dim**-0.5).masked_fill(~mask, float("-inf"))
        return (logits.softmax(-1).to(dtype) @ v).transpose(1, 2), logits.logsumexp(-1)

    bound, found = gradients(plain, operands, grad_out), gradients(by("triton"), operands, grad_out)
    worst = (0.0, "")
    for name, wanted in exact.items():
        rounding = torch.finfo(torch.float32 if name == "lse" else dtype).eps / 2 * wanted.abs().max()
        allowed = 2 * (bound[name] - wanted).abs().max() + rounding + 1e-6
        share = ((found[name] - wanted).abs().max() / allowed).item()
        worst = max(worst, (share if math.isfinite(share) else math.inf, name))
    return worst


def small_name(head_dim: int, dtype: torch.dtype, rows: int, columns: int) -> str:
    return f"head_dim {head_dim}, {str(dtype).removeprefix('torch.')}, tiles {rows} x {columns}"


def small_result(head_dim: int, dtype: torch.dtype, rows: int, columns: int) -> tuple[float, str]:
    """`error_of_small`, or an infinite one with what was raised."""
    torch.manual_seed(0)
    try:
        return error_of_small(head_dim, dtype, TILES[rows], TILES[columns])
    except Exception as error:  # the table of failures is the result
        return math.inf, repr(error)[:200]


def check_small() -> dict[str, float]:
    """Every head_dim, dtype and pair of tiles: error / allowed error; above 1 is wrong.

    In processes side by side: compiling takes longer than computing.
    """
    found: dict[str, float] = {}
    with ProcessPoolExecutor(min(12, os.cpu_count() or 1), multiprocessing.get_context("spawn")) as pool:
        cases = {case: pool.submit(small_result, *case) for case in product(HEAD_DIMS, DTYPES, TILES, TILES)}
        for case, result in cases.items():
            try:
                share, part = result.result()
            except BrokenProcessPool as error:
                share, part = math.inf, repr(error)
            found[small_name(*case)] = share
            if share > 1:
                print(f"WRONG {small_name(*case)}: {share:.2f} of the allowed error ({part})", flush=True)
    print(f"{sum(share <= 1 for share in found.values())} of {len(found)} configurations are right", flush=True)
    return found


def large_is_right(tensors: list[torch.Tensor], grad_out: torch.Tensor, block_map: BlockMap) -> bool:
    """Compare some query tiles and key tiles of a large problem with float32, one head: out, dq, dk and dv."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    out, lse = sparse_attention(*leaves, block_map, impl="triton", return_lse=True)  # type: ignore[call-overload]
    out.backward(grad_out)
    head = tensors[0].shape[2] - 1
    q, k, v, g, o = (x[0, :, head].detach().float() for x in (*tensors, grad_out, out))
    shift, row_lse, scale = (g * o).sum(-1, keepdim=True), lse[0, head][:, None], q.shape[1] ** -0.5
    dense = block_map.to_dense()[0, 0]
    of_query, of_key = (tile_tokens(block_map.view, t) for t in (block_map.query_tile, block_map.key_tile))
    worst = 0.0

    def compare(found: torch.Tensor, wanted: torch.Tensor) -> None:
        nonlocal worst
        error = ((found.float() - wanted).norm() / wanted.norm()).item()
        worst = max(worst, error if math.isfinite(error) else math.inf)

    for tile in (0, len(dense) // 3, len(dense) - 1):
        rows = of_query[tile].to(CUDA)
        keys = torch.cat([of_key[i] for i in dense[tile].nonzero().flatten().tolist()]).to(CUDA)
        weights = (q[rows] @ k[keys].T * scale).softmax(-1)
        compare(out[0, rows, head], weights @ v[keys])
        scores = weights * (g[rows] @ v[keys].T - shift[rows])
        compare(leaves[0].grad[0, rows, head], scores @ k[keys] * scale)
    for tile in (0, dense.shape[1] // 3, dense.shape[1] - 1):
        keys = of_key[tile].to(CUDA)
        rows = torch.cat([of_query[i] for i in dense[:, tile].nonzero().flatten().tolist()]).to(CUDA)
        weights = (q[rows] @ k[keys].T * scale - row_lse[rows]).exp()
        compare(leaves[2].grad[0, keys, head], weights.T @ g[rows])
        scores = weights * (g[rows] @ v[keys].T - shift[rows])
        compare(leaves[1].grad[0, keys, head], scores.T @ q[rows] * scale)
    return worst < 0.02


# Speed


@dataclass(frozen=True)
class Measurement:
    """One problem under one map; seconds and R are None where the numbers were wrong."""

    grid: str
    heads: int
    head_dim: int
    tile: int
    lists: str
    density: float
    dense: str
    forward_ms: float | None
    forward_R: float | None
    backward_ms: float | None
    backward_R: float | None
    peak_mib: float | None
    flex_forward_R: float | None = None
    flex_backward_R: float | None = None


def passes(attention: Callable[..., torch.Tensor], tensors: list[torch.Tensor]) -> tuple[float, float]:
    """Seconds of the forward and of the backward pass."""
    with torch.no_grad():
        forward = seconds(lambda: attention(*tensors), CUDA, 0.05)
    leaves = [x.detach().requires_grad_() for x in tensors]
    out = attention(*leaves)
    grad_out = torch.randn_like(out)
    backward = seconds(lambda: torch.autograd.grad(out, leaves, grad_out, retain_graph=True), CUDA, 0.05)
    return forward, backward


def dense_passes(tensors: list[torch.Tensor]) -> tuple[str, float, float]:
    """The fastest dense attention of each pass: names, seconds forward, seconds backward."""
    heads_first = [x.transpose(1, 2) for x in tensors]
    found: dict[str, tuple[float, float]] = {}
    for name, attention in dense_attention(CUDA).items():
        try:
            found[name] = passes(attention, heads_first)
        except RuntimeError as error:
            print(f"dense {name} does not run: {str(error)[:100]}", flush=True)
    forward, backward = (min(found, key=lambda name: found[name][i]) for i in (0, 1))
    return f"{forward}/{backward}", found[forward][0], found[backward][1]


def flex_passes(tensors: list[torch.Tensor], block_map: BlockMap) -> tuple[float, float]:
    """Compiled FlexAttention under the same map, its tokens taken to be in tile order: no time for permuting them."""
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    counts, indices = block_map.counts, block_map.indices
    wide = torch.zeros(1, 1, counts.shape[-1], block_map.key_tiles, dtype=torch.int32, device=CUDA)
    wide[..., : indices.shape[-1]] = indices
    nothing = torch.zeros_like(counts), torch.zeros_like(wide)
    mask = BlockMask.from_kv_blocks(*nothing, counts, wide, BLOCK_SIZE=math.prod(block_map.key_tile))
    compiled = torch.compile(flex_attention, dynamic=False)
    return passes(lambda q, k, v: compiled(q, k, v, block_mask=mask), [x.transpose(1, 2) for x in tensors])


def measure(name: str, heads: int, head_dim: int, with_flex: bool, wrong: set[int]) -> Iterator[Measurement]:
    """All maps of one problem, in bfloat16; tiles whose volume is in `wrong` get no time."""
    grid = GRIDS[name]
    tensors = inputs(grid.tokens, heads, head_dim, torch.bfloat16, CUDA)
    grad_out = torch.randn_like(tensors[0])
    for (volume, tile), (kind, lists), density in product(
        TILES.items(), (("clustered", clustered_map), ("random", random_map)), DENSITIES
    ):
        if density == DENSITIES[0]:  # often enough that clocks are those of the sparse calls
            dense, dense_forward, dense_backward = dense_passes(tensors)
        block_map = lists(grid, tile, density)
        problem = name, heads, head_dim, volume, kind, round(block_map.density, 4), dense
        try:
            if volume in wrong or not large_is_right(tensors, grad_out, block_map):
                raise ArithmeticError("wrong numbers")
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            forward, backward = passes(
                lambda q, k, v, m=block_map: sparse_attention(q, k, v, m, impl="triton"), tensors
            )
        except Exception as error:  # one that fails must not hide the others
            print(f"FAILED {problem}: {repr(error)[:200]}", flush=True)
            yield Measurement(*problem, None, None, None, None, None)
            continue
        peak = (torch.cuda.max_memory_allocated() - before) / 2**20
        share = block_map.token_density
        ratios = [forward / (dense_forward * share), backward / (dense_backward * share)]
        flex: list[float] = []
        if with_flex and volume == 128 and kind == "clustered" and density == 0.1 and not grid.padding(tile):
            try:
                flex_forward, flex_backward = flex_passes(tensors, block_map)
                flex = [flex_forward / (dense_forward * share), flex_backward / (dense_backward * share)]
            except Exception as error:  # a rival that fails must not hide ours
                print(f"flex does not run: {repr(error)[:200]}", flush=True)
        times = 1000 * forward, ratios[0], 1000 * backward, ratios[1], peak
        yield Measurement(*problem, *(round(x, 3) for x in (*times, *flex)))


def selection(name: str, heads: int, head_dim: int) -> dict[str, float]:
    """Milliseconds of choosing the map from the content, of attention under it, and the share."""
    grid, tile = GRIDS[name], TILES[128]
    tensors = inputs(grid.tokens, heads, head_dim, torch.bfloat16, CUDA)
    query, key, value = tensors
    tiles = math.prod(grid.tiles(tile))
    rule = Rule("top_k", round(0.1 * tiles))

    forced = forced_tiles(grid.view, tile, tile, reach=(1, 1, 1), sink=1).to(CUDA)

    def select() -> tuple[torch.Tensor, torch.Tensor]:
        return select_tiles(pooled_scores(query, key, grid.view, tile, tile), rule, forced)

    with torch.no_grad():
        choosing = seconds(select, CUDA, 0.05)
        block_map = BlockMap(grid, tile, tile, *select())
        attending = seconds(lambda: sparse_attention(query, key, value, block_map, impl="triton"), CUDA, 0.05)
    return {"selection_ms": 1000 * choosing, "attention_ms": 1000 * attending, "share": choosing / attending}


def table(rows: list[Measurement]) -> str:
    """The measurements in Markdown."""
    names = list(asdict(rows[0])) if rows else []
    lines = [names, ["---"] * len(names)]
    lines += [["" if x is None else str(x) for x in asdict(row).values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="correctness, and 75k tokens with 3 heads alone")
    parser.add_argument("--no-flex", action="store_true", help="leave FlexAttention out, which takes long to compile")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no CUDA device: benchmarks/aot.py and the interpreter tests are what can be had without one")
    started, device = time.time(), torch.cuda.get_device_name()
    torch.manual_seed(0)
    results: dict[str, Any] = {"device": device, "torch": torch.__version__, "triton": triton.__version__}
    stem = arguments.out / f"gpu_{device.replace(' ', '_').lower()}"

    def save() -> None:
        results["seconds"] = round(time.time() - started)
        with replacing(stem.with_suffix(".json")) as temporary:
            temporary.write_text(json.dumps(results, indent=1) + "\n")

    results["errors"] = check_small()
    save()
    # Short ones first: a run that is cut short leaves what it found.
    problems = [("75k", 3, 128)] if arguments.quick else [(n, h, d) for h in (3, 24) for n in GRIDS for d in (128, 64)]
    rows: list[Measurement] = []
    for name, heads, head_dim in problems:
        wrong = {v for v in TILES if results["errors"][small_name(head_dim, torch.bfloat16, v, v)] > 1}
        for row in measure(name, heads, head_dim, heads == 24 and not arguments.no_flex, wrong):
            rows.append(row)
            print(json.dumps(asdict(row)), flush=True)
            results["rows"] = [asdict(row) for row in rows]
            save()
    results["selection"] = {f"{n}, {h} heads of {d}": selection(n, h, d) for n, h, d in problems}
    print(json.dumps(results["selection"]), flush=True)
    save()
    stem.with_suffix(".md").write_text(f"# {device}, torch {torch.__version__}\n\n{table(rows)}\n")


if __name__ == "__main__":
    main()
