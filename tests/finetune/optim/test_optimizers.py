"""Optimizers by name: each learns and resumes to the bit."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from tiny_training import assert_same, lines, train

from vidsparse.finetune.optim.optimizers import build_optimizer, rate_groups, set_rates


@pytest.mark.parametrize("name", ["muon", "prodigy"])
def test_a_training_resumes_to_the_bit(tmp_path: Path, cache: Path, name: str) -> None:
    if name == "prodigy" and not importlib.util.find_spec("prodigyopt"):
        pytest.skip("prodigyopt is not installed")
    whole = train(tmp_path / "whole", cache, optimizer=name)
    train(tmp_path / "parts", cache, optimizer=name, steps=2)
    assert_same(train(tmp_path / "parts", cache, optimizer=name), whole)
    assert any(not torch.equal(whole[n], w) for n, w in train(tmp_path / "adamw", cache).items())
    assert len(lines(tmp_path / "whole")) == 2


def test_lora_plus_gives_b_a_rate_of_its_own() -> None:
    weights = {f"to_q.lora_{side}.default.weight": torch.nn.Parameter(torch.ones(2, 2)) for side in "AB"}
    optimizer = build_optimizer("adamw", rate_groups(weights, 16.0), 0.1, 0.0, torch.device("cpu"))
    set_rates(optimizer, 0.01)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01, 0.16])
    for weight in weights.values():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    first, second = (1 - float(weight[0, 0].detach()) for weight in weights.values())
    assert second == pytest.approx(16 * first, rel=1e-3)


def test_a_rate_that_is_a_tensor_stays_one() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([{"params": [weight], "factor": 2.0}], lr=torch.tensor(1.0))
    rate = optimizer.param_groups[0]["lr"]
    set_rates(optimizer, 0.25)
    assert optimizer.param_groups[0]["lr"] is rate and float(rate) == 0.5


def test_muon_refuses_vectors() -> None:
    with pytest.raises(ValueError, match="optimizer='muon' trains matrices alone; leave out dora"):
        groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "factor": 1.0}]
        build_optimizer("muon", groups, 0.1, 0.0, torch.device("cpu"))
