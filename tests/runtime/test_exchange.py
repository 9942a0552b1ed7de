"""The exchange of heads between processes, alone: any division of heads and tokens, and its gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gloo import on_ranks
from torch import distributed

from vidsparse.runtime.exchange import HeadExchange

# Heads of each rank, tokens of each rank, whole tokens before and after them.
DIVISIONS = {
    "blocks": (((0, 1), (2, 3)), (3, 3), (0, 0)),
    "scattered": (((1, 3), (0, 2)), (3, 3), (0, 0)),
    "uneven": (((0, 2, 3), (1,)), (4, 3), (0, 0)),
    "text-before-and-after": (((3, 0), (1, 2)), (2, 2), (2, 3)),
}


def exchanged(heads: Any, tokens: Any, ends: tuple[int, int]) -> dict[str, torch.Tensor]:
    """What arrives at this rank, and what comes back, of numbers that all ranks know."""
    group, rank = distributed.group.WORLD, distributed.get_rank()
    exchange = HeadExchange(group, rank, heads, tokens, *ends)
    whole = torch.randn(2, sum(tokens) + sum(ends), 4, 5, generator=torch.Generator().manual_seed(0))
    before, middle, after = whole.split((ends[0], sum(tokens), ends[1]), dim=1)
    mine = torch.cat((before, middle.split(tokens, dim=1)[rank], after), dim=1).requires_grad_()
    (heads_here, half) = exchange.split_heads([mine, mine.detach().bfloat16()])
    back = exchange.join_heads(heads_here * 2)
    weight = torch.arange(back.numel()).view_as(back).float()
    (back * weight).sum().backward()
    assert mine.grad is not None
    own = list(exchange.own_heads)
    return {
        "heads": torch.stack((heads_here.detach(), whole[:, :, own])),
        "rounded": torch.stack((half.float(), whole[:, :, own].bfloat16().float())),
        "back": torch.stack((back.detach(), 2 * mine.detach())),
        "gathered": torch.stack((exchange.gather(heads_here[:, 0]), whole[:, 0])),
        "gradient": mine.grad,
        "weight": weight,
    }


@pytest.mark.parametrize("division", DIVISIONS)
def test_heads_arrive_whole_and_go_back_to_their_tokens(division: str) -> None:
    heads, tokens, ends = DIVISIONS[division]
    for found in on_ranks(2, exchanged, heads, tokens, ends):
        for name in ("heads", "rounded", "back", "gathered"):
            assert torch.equal(*found[name]), name


def test_the_gradient_goes_the_same_way_back() -> None:
    for found in on_ranks(2, exchanged, *DIVISIONS["scattered"]):
        assert torch.equal(found["gradient"], 2 * found["weight"])


def test_the_gradient_of_whole_tokens_is_the_sum_over_the_ranks() -> None:
    found = on_ranks(2, exchanged, *DIVISIONS["text-before-and-after"])
    text = [0, 1, -3, -2, -1]
    total = sum(part["gradient"][:, text] for part in found)
    assert torch.equal(total, 2 * sum(part["weight"][:, text] for part in found))
    for part in found:
        assert torch.equal(part["gradient"][:, 2:4], 2 * part["weight"][:, 2:4])
