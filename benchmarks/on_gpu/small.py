"""Small calls against float64, in processes side by side: compiling takes longer than computing."""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import torch

from on_gpu.launches import Replacement, together
from on_gpu.plan import SMALL, TILES, Case, Plan, random_map
from vidsparse.attention import sparse_attention

Pass = Callable[[list[torch.Tensor]], tuple[torch.Tensor, torch.Tensor]]
AGAIN = 6  # cases that raised and are tried once more


def gradients(attention: Pass, tensors: list[torch.Tensor], grad_out: torch.Tensor) -> dict[str, torch.Tensor]:
    """out, lse, dq, dk and dv in float64 of a loss through both outputs."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    out, lse = attention(leaves)
    weights = torch.linspace(-1, 1, lse.numel(), device=lse.device, dtype=lse.dtype).view_as(lse)
    torch.autograd.backward((out, lse), (grad_out.to(out.dtype), torch.where(lse.isneginf(), 0.0, weights)))
    found = dict(out=out, lse=lse) | dict(zip(("dq", "dk", "dv"), (x.grad for x in leaves), strict=True))
    return {name: x.detach().double() for name, x in found.items() if x is not None}


def error(case: Case, device: torch.device) -> tuple[float, str]:
    """The worst error against float64, as a multiple of the allowed one, and of which result.

    Allowed is twice what plain attention in this dtype has, and one rounding.
    """
    grid = SMALL[case.grid]
    block_map = random_map(grid, TILES[case.columns], 0.4, TILES[case.rows]).to(device)
    extra = grid.prefix + grid.suffix
    valid = torch.tensor([extra, extra // 10], device=device, dtype=torch.int32) if extra else None
    shape = 2, grid.tokens, 2, case.head_dim
    *operands, grad_out = [torch.randn(shape, device=device, dtype=case.dtype) for _ in range(4)]

    def by(impl: str) -> Pass:
        def attention(x: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
            query, key, value = x
            return sparse_attention(query, key, value, block_map, extra_valid=valid, impl=impl, return_lse=True)

        return attention

    exact = gradients(by("reference"), [x.double() for x in operands], grad_out)
    mask = block_map.token_mask(valid)

    def plain(x: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        q, k, v = (y.transpose(1, 2) for y in x)
        logits = (q.float() @ k.float().mT * case.head_dim**-0.5).masked_fill(~mask, float("-inf"))
        return (logits.softmax(-1).to(case.dtype) @ v).transpose(1, 2), logits.logsumexp(-1)

    bound, found = gradients(plain, operands, grad_out), gradients(by("triton"), operands, grad_out)
    worst = (0.0, "")
    for name, wanted in exact.items():
        rounding = torch.finfo(torch.float32 if name == "lse" else case.dtype).eps / 2 * wanted.abs().max()
        allowed = 2 * (bound[name] - wanted).abs().max() + rounding + 1e-6
        share = ((found[name] - wanted).abs().max() / allowed).item()
        worst = max(worst, (share if math.isfinite(share) else math.inf, name))
    return worst


def result(case: Case, device: torch.device, launches: tuple[Replacement, ...] = ()) -> tuple[float, str]:
    """`error`, or an infinite one with what was raised."""
    torch.manual_seed(0)
    try:
        with together(launches, device):
            return error(case, device)
    except Exception as raised:  # the table of failures is the result
        return math.inf, repr(raised)[:200]


def results(plan: Plan) -> Iterator[tuple[Case, float, str]]:
    """The error of each case, as a multiple of the allowed one, and of which result.

    Cases that raised come a second time, each from a process of its own: after an illegal access nothing else runs.
    """
    if not plan.workers:
        yield from ((case, *result(case, plan.device, plan.launches)) for case in plan.cases)
        return
    context, raised = multiprocessing.get_context("spawn"), []
    with ProcessPoolExecutor(plan.workers, context) as pool:
        futures = {case: pool.submit(result, case, plan.device, plan.launches) for case in plan.cases}
        for case, future in futures.items():
            try:
                share, part = future.result()
            except BrokenProcessPool as broken:
                share, part = math.inf, repr(broken)
            raised += [case] if math.isinf(share) else []
            yield case, share, part
    for case in raised[:AGAIN]:
        with ProcessPoolExecutor(1, context) as pool:
            try:
                yield case, *pool.submit(result, case, plan.device, plan.launches).result()
            except BrokenProcessPool as broken:
                yield case, math.inf, repr(broken)
