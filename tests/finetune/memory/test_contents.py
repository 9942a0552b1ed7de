"""Tensors without content, of which small ones are known all the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException

from vidsparse.finetune.memory.contents import MOST, Contents


def on_nothing(run: Callable[[], Any]) -> Any:
    with FakeTensorMode(allow_non_fake_inputs=True), Contents():
        return run()


def cut() -> torch.Size:
    """As HunyuanVideo cuts the padding off its text."""
    mask, text = torch.ones(1, 9), torch.empty(1, 9, 4)
    mask[:, 6:] = 0
    return text[:, : mask.sum(dim=1, dtype=torch.int)[0]].shape


def compared() -> bool:
    """As HunyuanVideo 1.5 finds out whether there is an image."""
    return bool(torch.all(torch.zeros(1, 3, 4) == 0)) and not bool(torch.ones_like(torch.empty(2)).eq(0).any())


def picked() -> tuple[torch.Size, torch.Size, list[int]]:
    """As Mochi and HunyuanVideo 1.5 pick the words of a text."""
    mask = torch.arange(6) < 4
    places, text = mask.nonzero(), torch.empty(6, 3)
    return places.shape, text[mask].shape, places.flatten().tolist()


def put() -> torch.Size:
    text = torch.empty(6, 3)
    text[torch.arange(6) < 2] = 0.0
    return text.shape


@pytest.mark.parametrize("run", [cut, compared, picked, put])
def test_what_a_model_asks_is_answered_as_on_real_tensors(run: Callable[[], Any]) -> None:
    assert on_nothing(run) == run()


@pytest.mark.parametrize(
    "made",
    [
        lambda: torch.empty(3),
        lambda: torch.rand(3),
        lambda: torch.ones(3) * torch.empty(3),
        lambda: torch.ones(3).copy_(torch.empty(3)),
        lambda: torch.ones(MOST + 1),
    ],
    ids=["empty", "random", "of empty", "overwritten", "large"],
)
def test_what_is_not_known_is_not_made_up(made: Callable[[], torch.Tensor]) -> None:
    with pytest.raises(DataDependentOutputException):
        on_nothing(lambda: float(made().sum()))


def test_a_table_of_the_model_is_read() -> None:
    table = torch.tensor([3.0, 4.0])
    assert on_nothing(lambda: float(table[1])) == 4.0 and table.tolist() == [3.0, 4.0]
