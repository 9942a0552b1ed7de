"""How fast attention is on this machine: sparse against the best dense, and which launch of the kernels is fastest."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from vidsparse.attention import choose_impl, sparse_attention
from vidsparse.block_map import BlockMap
from vidsparse.runtime.stopwatch import Stopwatch

STEPS, WARPS, STAGES, REGISTERS = (16, 32, 64, 128), (4, 8), (1, 2, 3, 4), (None, 128)
TIMINGS = 3  # of a call, at least


OnCall = Callable[[int, int], None]


def seconds(
    function: Callable[[], object],
    device: torch.device,
    at_least: float = 0.2,
    on_call: OnCall = lambda done, calls: None,
) -> float:
    """Median seconds of a call, after one that is not counted, over calls that together take `at_least` seconds.

    On a GPU short calls are timed in rows of 20 ms: one is launched while another computes, as in a model.

    Args:
        on_call: called at the start and after each timing, with those that are done and how many there are at least.
    """
    on_call(0, TIMINGS + 1)
    function()
    on_call(1, TIMINGS + 1)
    calls = math.ceil(0.02 / _elapsed(function, device, 1)) if device.type == "cuda" else 1
    times: list[float] = []
    while len(times) < TIMINGS or calls * sum(times) < at_least:
        times.append(_elapsed(function, device, calls) / calls)
        on_call(min(len(times), TIMINGS) + 1, TIMINGS + 1)
    return statistics.median(times)


def _elapsed(function: Callable[[], object], device: torch.device, calls: int) -> float:
    stopwatch = Stopwatch(device)
    for _ in range(calls):
        function()
    return stopwatch.stop().seconds()


def dense_attention(device: torch.device) -> dict[str, Callable[..., torch.Tensor]]:
    """PyTorch's dense attention by each backend that could be the fastest here: name -> function of [B, H, N, D]."""
    if device.type != "cuda":
        return {"sdpa": scaled_dot_product_attention}

    def by(backend: SDPBackend) -> Callable[..., torch.Tensor]:
        def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            with sdpa_kernel(backend):
                return scaled_dot_product_attention(query, key, value)

        return attention

    backends = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
    return {name: by(backend) for name, backend in backends.items()} | {"sdpa": scaled_dot_product_attention}


@dataclass(frozen=True)
class Timing:
    """One pass of attention, dense and sparse.

    Attributes:
        dense: name of the fastest dense attention. impl: what ran sparse.
        dense_seconds, sparse_seconds: of a call.
        density: kept / all pairs of tokens.
    """

    dense: str
    impl: str
    dense_seconds: float
    sparse_seconds: float
    density: float

    @property
    def speedup(self) -> float:
        """How many times faster than dense."""
        return self.dense_seconds / self.sparse_seconds

    @property
    def ratio(self) -> float:
        """R = sparse seconds / (dense seconds * density): 1 turns sparsity into time without loss."""
        return self.sparse_seconds / (self.dense_seconds * self.density)


def inputs(tokens: int, heads: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> list[torch.Tensor]:
    """Query, key and value of normal numbers, [1, tokens, heads, head_dim]."""
    return [torch.randn(1, tokens, heads, head_dim, dtype=dtype, device=device) for _ in range(3)]


def time_attention(
    tensors: list[torch.Tensor],
    block_map: BlockMap,
    impl: str = "auto",
    on_step: Callable[[str, int, int], None] = lambda task, done, steps: None,
) -> Timing:
    """Time the forward pass under a map, and dense by every backend, in one run.

    Args:
        on_step: called with "dense, ..." or "sparse", the timings that are done, and how many there are at least.
    """
    device, heads_first = tensors[0].device, [x.transpose(1, 2) for x in tensors]
    block_map = block_map.to(device)
    chosen = choose_impl(impl, tensors[0], block_map).impl
    with torch.no_grad():
        dense: dict[str, float] = {}
        for name, attention in dense_attention(device).items():
            try:
                told = partial(on_step, f"dense, {name}")
                dense[name] = seconds(partial(attention, *heads_first), device, on_call=told)
            except RuntimeError:  # a backend that does not take this dtype, head_dim or chip
                continue
        query, key, value = tensors
        attend = partial(sparse_attention, query, key, value, block_map, impl=chosen)
        sparse = seconds(attend, device, on_call=partial(on_step, "sparse"))
    best = min(dense, key=lambda name: dense[name])
    return Timing(best, chosen, dense[best], sparse, block_map.token_density)


def row(kernel: str, query: torch.Tensor, tile: tuple[int, int, int]) -> str:
    """Where a launch for these tensors, with programs that hold such a tile, stands in the table of launches."""
    from vidsparse_kernels.gpu.configs import family
    from vidsparse_kernels.gpu.device import capability

    numbers = query.element_size(), query.shape[3]
    return f'({family(capability(query.device))}, "{kernel}"), {numbers}, tile of {math.prod(tile)} tokens'


def tune(tensors: list[torch.Tensor], block_map: BlockMap, kernel: str) -> Iterator[tuple[object, float]]:
    """Time every launch of one kernel that runs on this chip: (configuration, seconds) one after the other.

    Left out are launches that do not compile, do not fit, or give other numbers than the one of the table.

    Args:
        tensors: query, key and value on a CUDA device.
        kernel: "forward", "query_gradient" or "key_gradient"; the gradients are timed as a whole backward pass.

    Raises:
        NotImplementedError: tensors or tiles that the kernels do not take.
    """
    from vidsparse_kernels.gpu.configs import GLUON_CANDIDATES, Config, GluonConfig, trying

    device = tensors[0].device
    query, key, value = leaves = [x.detach().requires_grad_(kernel != "forward") for x in tensors]
    block_map = block_map.to(device)

    def attend() -> torch.Tensor:
        return sparse_attention(query, key, value, block_map, impl="triton")

    def differentiate() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(out, leaves, out, retain_graph=True)

    out = attend()
    run: Callable[[], tuple[torch.Tensor, ...]] = (lambda: (attend(),)) if kernel == "forward" else differentiate
    expected = run()
    walked = math.prod(block_map.query_tile if kernel == "key_gradient" else block_map.key_tile)
    launches = product([step for step in STEPS if step <= walked], WARPS, STAGES, REGISTERS)
    configs: list[Config | GluonConfig] = [Config(*launch) for launch in launches]
    # Where the forward in Gluon cannot run it says so, as any launch that fails.
    configs += GLUON_CANDIDATES.get(query.shape[3], ()) if kernel == "forward" else ()
    for config in configs:
        try:
            with trying(kernel, config):
                # Values of such attention are small: what counts is the error beside them.
                if not all((x - y).norm() <= 0.02 * y.norm() for x, y in zip(run(), expected, strict=True)):
                    continue
                took = seconds(run, device)
        except torch.AcceleratorError:
            raise  # nothing runs after it
        except Exception:  # compilers and drivers refuse a candidate in many ways
            continue
        yield config, took
