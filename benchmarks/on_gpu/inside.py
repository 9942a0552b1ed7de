"""Where the time of one call goes: kernel by kernel, on the host, and in a CUDA graph."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from on_gpu.plan import Plan, Problem, clustered_map
from on_gpu.speed import by_kernels
from vidsparse import bench
from vidsparse.bench import inputs
from vidsparse.block_map import BlockMap
from vidsparse.grid import VideoGrid

# What the name of a kernel says of it, by its beginning; the rest prepares lists and output.
PARTS = {
    "forward_kernel": "forward",
    "query_gradient_kernel": "dq",
    "key_gradient_kernel": "dk_dv",
    "add_slots_kernel": "slots",
    "row_terms_kernel": "row_terms",
    "key_norms_kernel": "norms",
    **dict.fromkeys(("key_lists_kernel", "mark_kernel", "column_lists_kernel"), "lists"),
}
CALLS, DENSITY = 5, 0.1
SHORT = VideoGrid(2, 16, 16)  # its kernels end sooner than the host can start them


def split(plan: Plan, problem: Problem, volume: int, density: float = DENSITY) -> dict[str, dict[str, float]]:
    """Milliseconds of each kind of kernel in a forward and backward pass.

    `kept` is a map that was used before, whose lists are kept with it, and `new` one that is seen for the first time,
    as one chosen from the content is.
    """
    block_map = clustered_map(problem.grid, plan.tiles[volume], density).to(plan.device)
    tensors = inputs(problem.grid.tokens, problem.heads, problem.head_dim, torch.bfloat16, plan.device)
    leaves, grad_out = [x.requires_grad_() for x in tensors], torch.randn_like(tensors[0])

    def both(lists: BlockMap) -> None:
        torch.autograd.grad(by_kernels(lists)(*leaves), leaves, grad_out)

    return {
        "kept": kernel_times(lambda: both(block_map), plan.device),
        "new": kernel_times(lambda: both(dataclasses.replace(block_map)), plan.device),
    }


def kernel_times(call: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Milliseconds of a call by kind of kernel, and their sum; empty where there is no GPU to ask."""
    call()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(CALLS):
            call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return by_part(event for event in profiler.key_averages() if event.device_type.name == "CUDA")


def by_part(events: Iterable[Any]) -> dict[str, float]:
    """Milliseconds of a call by kind, of what a profiler saw of `CALLS` calls on the device."""
    found: dict[str, float] = defaultdict(float)
    for event in events:
        part = next((part for beginning, part in PARTS.items() if event.key.startswith(beginning)), "other")
        found[part] += event.self_device_time_total / 1000 / CALLS
    if found:
        found["all"] = math.fsum(found.values())
    return {part: round(took, 4) for part, took in found.items()}


def host(plan: Plan, problem: Problem, volume: int) -> dict[str, float]:
    """Microseconds in which the host starts a forward and a backward pass of a short video."""
    block_map = clustered_map(SHORT, plan.tiles[volume], 1.0).to(plan.device)
    tensors = inputs(SHORT.tokens, problem.heads, problem.head_dim, torch.bfloat16, plan.device)
    leaves = [x.requires_grad_() for x in tensors]
    attention, took = by_kernels(block_map), defaultdict(list)

    def synchronize() -> None:
        if plan.device.type == "cuda":
            torch.cuda.synchronize(plan.device)

    for _ in range(4 * CALLS):
        synchronize()
        started = time.perf_counter()
        out = attention(*leaves)
        took["forward_us"].append(time.perf_counter() - started)
        synchronize()
        started = time.perf_counter()
        torch.autograd.grad(out, leaves, out.detach())
        took["backward_us"].append(time.perf_counter() - started)
    return {name: round(1e6 * statistics.median(times), 1) for name, times in took.items()}


def replay(plan: Plan, problem: Problem, volume: int, density: float = DENSITY) -> dict[str, Any]:
    """Milliseconds of a forward pass as a call and as a replayed CUDA graph, and whether both give the same bits.

    Raises:
        NotImplementedError: a device without graphs.
    """
    if plan.device.type != "cuda":
        raise NotImplementedError(f"no CUDA graphs on {plan.device}")
    block_map = clustered_map(problem.grid, plan.tiles[volume], density).to(plan.device)
    tensors = inputs(problem.grid.tokens, problem.heads, problem.head_dim, torch.bfloat16, plan.device)
    attention = by_kernels(block_map)
    with torch.no_grad():
        expected = attention(*tensors)  # also compiles, and makes the lists that the map keeps
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = attention(*tensors)
        graph.replay()
        same = torch.equal(out, expected)
        call = bench.seconds(lambda: attention(*tensors), plan.device)
    again = bench.seconds(graph.replay, plan.device)
    return {"call_ms": round(1000 * call, 3), "replay_ms": round(1000 * again, 3), "same_bits": same}
