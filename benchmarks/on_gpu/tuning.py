"""Which launch is the fastest: every candidate compiled first, side by side, then checked and timed one by one."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from on_gpu import speed
from on_gpu.launches import Launch
from on_gpu.plan import GRIDS, TILES, clustered_map
from on_gpu.saved import Results
from vidsparse import bench
from vidsparse.block_map import BlockMap
from vidsparse.grid import VideoGrid
from vidsparse_kernels.gpu.configs import Kernel

DENSITY = 0.2
SHORT = VideoGrid(5, 13, 80)  # with the ragged edges of the long one, so that it compiles the same code


class Candidate(Protocol):
    """Another way to compute what a kernel does; `Launch` is one, and another kernel can be."""

    @property
    def kernel(self) -> Kernel:
        """Whose work it does: the gradients are timed as a whole backward pass."""

    @property
    def head_dim(self) -> int: ...

    @property
    def held(self) -> int:
        """Tokens of the tiles of the map under which it is timed."""

    def active(self, device: torch.device) -> AbstractContextManager[None]:
        """In this context attention by the kernels computes so. What prints a candidate tells it from all others."""


@dataclass(frozen=True)
class Search:
    """What to try, and for how long.

    Attributes:
        device: where to compute. candidates: in the order in which they are tried.
        seconds: after which nothing is started any more.
        grid, heads: of the calls that are timed. short: of those that compile.
        workers: processes that compile; 0: none, everything compiles where it is timed.
    """

    device: torch.device
    candidates: tuple[Candidate, ...]
    seconds: float
    grid: VideoGrid = GRIDS["75k"]
    heads: int = 3
    short: VideoGrid = SHORT
    workers: int = 14


def compile_one(candidate: Candidate, device: torch.device, grid: VideoGrid) -> None:
    """Run it on a short video: the machine code goes to Triton's cache on disk."""
    try:
        with candidate.active(device):
            block_map = clustered_map(grid, TILES[candidate.held], DENSITY).to(device)
            tensors = bench.inputs(grid.tokens, 2, candidate.head_dim, torch.bfloat16, device)
            leaves = [x.requires_grad_(candidate.kernel != "forward") for x in tensors]
            out = speed.by_kernels(block_map)(*leaves)
            if out.requires_grad:
                torch.autograd.grad(out, leaves, out.detach())
            out.sum().item()  # waits for the device
    except Exception:  # it fails again where it counts
        return


def compile_all(search: Search) -> None:
    """Compile every candidate in processes side by side, for at most half of the time."""
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(search.workers, multiprocessing.get_context("spawn"))
    futures = [pool.submit(compile_one, one, search.device, search.short) for one in search.candidates]
    waiting = wait(futures, timeout=search.seconds / 2).not_done
    pool.shutdown(wait=not waiting, cancel_futures=True)
    for process in set(multiprocessing.active_children()) - others if waiting else ():
        process.terminate()  # a kernel that hangs would share the device with those that are timed


@dataclass(frozen=True)
class Call:
    """The tensors and the map that candidates for one head_dim and tile are timed with, and the dense attention."""

    tensors: list[torch.Tensor]
    grad_out: torch.Tensor
    block_map: BlockMap
    dense: speed.Dense

    @classmethod
    def of(cls, search: Search, head_dim: int, held: int) -> Call:
        torch.manual_seed(0)
        tensors = bench.inputs(search.grid.tokens, search.heads, head_dim, torch.bfloat16, search.device)
        block_map = clustered_map(search.grid, TILES[held], DENSITY).to(search.device)
        return cls(tensors, torch.randn_like(tensors[0]), block_map, speed.dense_passes(tensors))


def time_all(search: Search, results: Results) -> list[dict[str, Any]]:
    """A row for each candidate that there was time for: milliseconds and R of its pass, or what was wrong."""
    call, known = None, None
    rows: list[dict[str, Any]] = []
    for candidate in search.candidates:
        if results.seconds > search.seconds:
            print(f"out of time after {len(rows)} of {len(search.candidates)} candidates", flush=True)
            break
        if known != (candidate.head_dim, candidate.held) or call is None:
            call, known = None, (candidate.head_dim, candidate.held)  # frees the last one's memory
            call = Call.of(search, *known)
        row: dict[str, Any] = {"candidate": str(candidate)}
        try:
            with candidate.active(search.device):
                figures = speed.sparse_figures(call.tensors, call.grad_out, call.block_map, call.dense)
            of_pass = "forward" if candidate.kernel == "forward" else "backward"
            row |= {"error": figures["error"], "ms": figures[f"{of_pass}_ms"], "R": figures[f"{of_pass}_R"]}
            row["tflops"] = figures[f"{of_pass}_tflops"]
        except torch.AcceleratorError:
            raise  # nothing runs after it
        except Exception as error:  # compilers and drivers refuse in many ways
            row["failed"] = repr(error)[:200]
        rows.append(row)
        print(json.dumps(row), flush=True)
        # At once: one that hangs later must not cost what is known.
        results.save(rows=rows, winners=[str(one) for one in fastest(search, rows)])
    return rows


def fastest(search: Search, rows: list[dict[str, Any]]) -> list[Candidate]:
    """Of each kernel, head_dim and tile the candidate with the least time, of those with right numbers."""
    took = {row["candidate"]: row["ms"] for row in rows if "ms" in row}
    best: dict[tuple[str, int, int], Candidate] = {}
    for candidate in search.candidates:
        key = candidate.kernel, candidate.head_dim, candidate.held
        if str(candidate) in took and (key not in best or took[str(candidate)] < took[str(best[key])]):
            best[key] = candidate
    return list(best.values())


def with_table(candidates: tuple[Candidate, ...], device: torch.device) -> Iterator[Candidate]:
    """The candidates, and before the first of each kernel, head_dim and tile the row that the table has."""
    seen = set()
    for candidate in candidates:
        key = candidate.kernel, candidate.head_dim, candidate.held
        own = Launch.of_table(device, *key)
        if key not in seen:
            seen.add(key)
            yield own
        if str(candidate) != str(own):
            yield candidate


def beside_table(search: Search, best: list[Candidate]) -> list[dict[str, Any]]:
    """The winners of each head_dim and tile all at once, beside the table's rows: milliseconds and R of both passes."""
    rows = []
    for head_dim, held in dict.fromkeys((one.head_dim, one.held) for one in best):
        call = Call.of(search, head_dim, held)
        for name in ("table", "winners"):
            with ExitStack() as stack:
                for one in best if name == "winners" else []:
                    stack.enter_context(one.active(search.device))
                figures = speed.sparse_figures(call.tensors, call.grad_out, call.block_map, call.dense)
            rows.append({"launches": name, "head_dim": head_dim, "tile": held, **figures})
            print(json.dumps(rows[-1]), flush=True)
    return rows
