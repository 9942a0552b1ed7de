"""Seconds of sparse attention beside those of the fastest dense attention, in the same run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch

from on_gpu import large
from on_gpu.plan import Plan, Problem, maps
from vidsparse import bench
from vidsparse.attention import sparse_attention
from vidsparse.block_map import BlockMap

FORWARD, BACKWARD = 4, 10  # FLOP for each pair of tokens and channel: two products, and five
ONCE = 0.05  # seconds for which a call is repeated


@dataclass(frozen=True)
class Dense:
    """The fastest dense attention of each pass: which, and seconds."""

    forward: str
    forward_s: float
    backward: str
    backward_s: float


@dataclass(frozen=True)
class Measurement:
    """One problem under one map; None where the numbers were wrong.

    R = seconds of sparse / (seconds of the fastest dense * kept pairs of tokens / all). TFLOP/s are those of the
    products that the map asks for, two in the forward pass and five in the backward pass.
    """

    problem: str
    tile: int
    map: str
    density: float
    dense: str
    dense_forward_tflops: float
    dense_backward_tflops: float
    error: float | None = None
    forward_ms: float | None = None
    forward_R: float | None = None
    forward_tflops: float | None = None
    backward_ms: float | None = None
    backward_R: float | None = None
    backward_tflops: float | None = None
    peak_mib: float | None = None
    flex_forward_R: float | None = None
    flex_backward_R: float | None = None


def passes(attention: Callable[..., torch.Tensor], tensors: list[torch.Tensor]) -> tuple[float, float]:
    """Seconds of the forward and of the backward pass."""
    device = tensors[0].device
    with torch.no_grad():
        forward = bench.seconds(lambda: attention(*tensors), device, ONCE)
    leaves = [x.detach().requires_grad_() for x in tensors]
    out = attention(*leaves)
    grad_out = torch.randn_like(out)
    return forward, bench.seconds(lambda: torch.autograd.grad(out, leaves, grad_out, retain_graph=True), device, ONCE)


def by_kernels(block_map: BlockMap) -> Callable[..., torch.Tensor]:
    """Attention under a map by the Triton kernels."""

    def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return sparse_attention(query, key, value, block_map, impl="triton")

    return attention


def dense_passes(tensors: list[torch.Tensor]) -> Dense:
    """The fastest of PyTorch's backends, pass by pass."""
    heads_first = [x.transpose(1, 2) for x in tensors]
    found: dict[str, tuple[float, float]] = {}
    for name, attention in bench.dense_attention(tensors[0].device).items():
        try:
            found[name] = passes(attention, heads_first)
        except torch.AcceleratorError:
            raise  # nothing runs after it
        except RuntimeError as error:
            print(f"dense {name} does not run: {str(error)[:100]}", flush=True)
    forward, backward = (min(found, key=lambda name: found[name][i]) for i in (0, 1))
    return Dense(forward, found[forward][0], backward, found[backward][1])


def flex_passes(tensors: list[torch.Tensor], block_map: BlockMap) -> tuple[float, float]:
    """Compiled FlexAttention under the same map, its tokens taken to be in tile order: no time for permuting them."""
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    counts, indices = block_map.counts, block_map.indices
    shape = 1, 1, counts.shape[-1], block_map.key_tiles
    wide = torch.zeros(shape, dtype=torch.int32, device=counts.device)
    wide[..., : indices.shape[-1]] = indices
    nothing = torch.zeros_like(counts), torch.zeros_like(wide)
    mask = BlockMask.from_kv_blocks(*nothing, counts, wide, BLOCK_SIZE=math.prod(block_map.key_tile))
    compiled = torch.compile(flex_attention, dynamic=False)
    return passes(lambda q, k, v: compiled(q, k, v, block_mask=mask), [x.transpose(1, 2) for x in tensors])


def measure(plan: Plan, problem: Problem, wrong: set[int]) -> Iterator[Measurement]:
    """All maps of one problem; tiles whose volume is in `wrong` get no time."""
    tensors = bench.inputs(problem.grid.tokens, problem.heads, problem.head_dim, torch.bfloat16, plan.device)
    grad_out = torch.randn_like(tensors[0])
    before: tuple[int, str] | None = None
    for volume, kind, block_map in maps(plan, problem):
        if (volume, kind) != before:  # often enough that clocks are those of the sparse calls
            before, dense = (volume, kind), dense_passes(tensors)
        row = Measurement(
            str(problem),
            volume,
            kind,
            round(block_map.density, 4),
            f"{dense.forward}/{dense.backward}",
            round(tflops(FORWARD, tensors[0], dense.forward_s), 1),
            round(tflops(BACKWARD, tensors[0], dense.backward_s), 1),
        )
        try:
            if volume in wrong:
                raise ArithmeticError("wrong in small calls")
            figures = sparse_figures(tensors, grad_out, block_map, dense)
            row = replace(row, **figures)
            ragged = problem.grid.padding(block_map.key_tile)  # which FlexAttention does not take
            # One map of each long problem, for it takes long to compile.
            if (
                plan.flex
                and not ragged
                and (volume, kind, problem.heads) == (128, "clustered", 24)
                and row.density < 0.15
            ):
                row = replace(row, **flex_figures(tensors, block_map, dense))
        except torch.AcceleratorError:
            raise  # nothing runs after it
        except Exception as error:  # one that fails must not hide the others
            print(f"FAILED {row}: {repr(error)[:200]}", flush=True)
        yield row


def tflops(flop: int, query: torch.Tensor, took: float, share: float = 1.0) -> float:
    """TFLOP/s of attention that computes `share` of all pairs, `flop` each and channel, of a query [1, N, H, D]."""
    return flop * query.shape[1] * query.numel() * share / took / 1e12


def sparse_figures(
    tensors: list[torch.Tensor], grad_out: torch.Tensor, block_map: BlockMap, dense: Dense
) -> dict[str, Any]:
    """Error, milliseconds, R, TFLOP/s and memory.

    Raises:
        ArithmeticError: wrong numbers.
    """
    off = large.error(tensors, grad_out, block_map)
    if off > large.ALLOWED:
        raise ArithmeticError(f"wrong numbers: a relative error of {off:.3g}")
    cuda = tensors[0].is_cuda
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated() if cuda else 0
    forward, backward = passes(by_kernels(block_map), tensors)
    peak = (torch.cuda.max_memory_allocated() if cuda else 0) - held
    share = block_map.token_density
    return {
        "error": float(f"{off:.2g}"),
        "forward_ms": round(1000 * forward, 3),
        "forward_R": round(forward / (dense.forward_s * share), 3),
        "forward_tflops": round(tflops(FORWARD, tensors[0], forward, share), 1),
        "backward_ms": round(1000 * backward, 3),
        "backward_R": round(backward / (dense.backward_s * share), 3),
        "backward_tflops": round(tflops(BACKWARD, tensors[0], backward, share), 1),
        "peak_mib": round(peak / 2**20, 1),
    }


def flex_figures(tensors: list[torch.Tensor], block_map: BlockMap, dense: Dense) -> dict[str, Any]:
    """R of FlexAttention; nothing where it does not run: a rival that fails must not hide ours."""
    try:
        forward, backward = flex_passes(tensors, block_map)
    except Exception as error:
        print(f"flex does not run: {repr(error)[:200]}", flush=True)
        return {}
    share = block_map.token_density
    ratios = forward / (dense.forward_s * share), backward / (dense.backward_s * share)
    return dict(zip(("flex_forward_R", "flex_backward_R"), (round(x, 3) for x in ratios), strict=True))


def table(rows: list[Measurement]) -> str:
    """The measurements in Markdown."""
    names = [field.name for field in fields(Measurement)]
    lines = [names, ["---"] * len(names)]
    lines += [["" if x is None else str(x) for x in asdict(row).values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
