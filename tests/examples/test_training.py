"""The training of `shapes`: stages resume where they stopped, optimizers move what they should."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from optimization import STOP, Stage, learning_rate_factor, optimizers


def stage(folder: Path) -> tuple[Stage, torch.nn.Module]:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Conv1d(16, 16, 3), torch.nn.Flatten(), torch.nn.Linear(16 * 4, 12))
    return Stage("toy", folder, {"toy": module}, optimizers(module, lr=1e-2)), module


def run(folder: Path, steps: int, total: int) -> torch.nn.Module:
    made, module = stage(folder)

    def loss_of(rng: random.Random) -> tuple[torch.Tensor, dict[str, float]]:
        if made.step >= steps:
            raise KeyboardInterrupt
        x = torch.randn(8, 16, 6, generator=torch.Generator().manual_seed(rng.randrange(1000)))
        loss = (module(x) - x[:, :12, 0]).square().mean()
        return loss, {"twice": 2 * loss.item()}

    made.run(loss_of, total, log_every=5, save_every=-1)  # a checkpoint after each step
    return module


def test_a_resumed_training_is_the_uninterrupted_one(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    whole = run(tmp_path / "one", 20, 20)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "two", 11, 20)
    resumed = run(tmp_path / "two", 20, 20)
    for expected, found in zip(whole.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    one, two = (torch.load(tmp_path / name / "toy.pt", weights_only=True) for name in ("one", "two"))
    assert one["step"] == two["step"] == 20
    for name, expected in one["averages"]["toy"].items():
        torch.testing.assert_close(two["averages"]["toy"][name], expected, rtol=0, atol=0)
    assert not list(tmp_path.rglob("*.tmp"))


def test_the_loss_falls(tmp_path: Path) -> None:
    run(tmp_path, 200, 200)
    losses = [
        float(line.split('"loss": ')[1].split(",")[0]) for line in (tmp_path / "log.jsonl").read_text().splitlines()
    ]
    assert len(losses) == 40
    assert losses[-1] < 0.5 * losses[0]


def test_muon_takes_matrices_and_kernels_and_adam_the_rest() -> None:
    module = torch.nn.Sequential(torch.nn.Conv1d(16, 16, 3), torch.nn.Linear(16, 4))
    muon, adam = optimizers(module, lr=1e-2)
    assert [tuple(p.shape) for p in muon.parameters] == [(16, 16, 3)]
    assert [tuple(p.shape) for group in adam.param_groups for p in group["params"]] == [(16,), (4, 16), (4,)]


def test_the_learning_rate_warms_up_and_falls_along_a_line() -> None:
    rates = [learning_rate_factor(progress, (1.0, 0.5), 1000) for progress in (0.0, 0.5, 1.0)]
    assert rates == pytest.approx([1.0, 0.75, 0.5])
    assert [learning_rate_factor(0.5, (1.0, 0.5), steps) for steps in (0, 49)] == pytest.approx([0.75 / 50, 0.75])


def test_a_stage_ends_with_its_budget(tmp_path: Path) -> None:
    made, module = stage(tmp_path)
    made.run(lambda rng: (module(torch.randn(2, 16, 6)).square().mean(), {}), 10**6, (1.0, 0.0), budget=0.2)
    assert made.done and 0 < made.step < 10**6
    again, _ = stage(tmp_path)
    again.run(lambda rng: pytest.fail("a step after the end"), 10**6, (1.0, 0.0), budget=0.2)
    assert again.done and again.step == made.step


def test_a_stage_stops_at_a_checkpoint_when_it_is_told(tmp_path: Path) -> None:
    made, module = stage(tmp_path)

    def loss_of(rng: random.Random) -> tuple[torch.Tensor, dict[str, float]]:
        if made.step == 3:
            STOP.set()
        return module(torch.randn(2, 16, 6)).square().mean(), {}

    try:
        made.run(loss_of, 100)
    finally:
        STOP.clear()
    assert torch.load(tmp_path / "toy.pt", weights_only=True)["step"] == made.step == 4


def test_a_loss_that_is_no_number_ends_the_training(tmp_path: Path) -> None:
    made, module = stage(tmp_path)
    with pytest.raises(RuntimeError, match="non-finite"):
        made.run(lambda rng: (module(torch.full((2, 16, 6), torch.nan)).mean(), {}), 10, save_every=-1)
    assert not (tmp_path / "toy.pt").exists()
