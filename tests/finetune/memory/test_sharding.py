"""Frozen weights that processes divide give the training that whole ones give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from shared_training import FSDP2, train_on_two
from tiny_training import assert_same, lines, measured


@pytest.mark.parametrize(
    "changes",
    [{}, {"gradient_checkpointing": True, "dropout": 0.2}, {"dora": True, "batch": 2, "ema": 0.9, "precision": "bf16"}],
    ids=["plain", "recomputed", "dora-bf16"],
)
def test_divided_weights_train_as_whole_ones_to_the_bit(tmp_path: Path, cache: Path, changes: dict[str, Any]) -> None:
    more = dict(videos=5, validation_share=0.3, log_every=1, **changes)
    whole = train_on_two(tmp_path / "whole", cache, {}, **more)
    assert_same(train_on_two(tmp_path / "divided", cache, FSDP2, **more), whole)
    found, expected = ([measured(line) for line in lines(tmp_path / name)] for name in ("divided", "whole"))
    assert found == expected and any("validation_loss" in line for line in found)
