"""The training of `shapes`: stages resume where they stopped, optimizers move what they should."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from vidsparse.shapes.training import Stage, learning_rate_factor, optimizers


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

    made.run(loss_of, total, log_every=5, decay=0.3)
    return module


def test_a_resumed_training_is_the_uninterrupted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidsparse.shapes.training.SAVE_SECONDS", -1)  # a checkpoint after each step
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


def test_the_learning_rate_warms_up_stays_and_falls() -> None:
    rates = [learning_rate_factor(step, 1000, decay=0.3) for step in (0, 49, 400, 700, 850, 999)]
    assert rates == pytest.approx([0.02, 1.0, 1.0, 1.0, 0.5, 1 / 300])
    assert learning_rate_factor(999, 1000, decay=0.0) == 1.0
