"""Optimizers by name: each learns and resumes to the bit."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from tiny_training import assert_same, lines, train

from vidsparse.finetune.optim import optimizers
from vidsparse.finetune.optim.optimizers import build_optimizer, check_optimizer_on, rate_groups, set_rates


@pytest.mark.parametrize("name", ["muon", "prodigy"])
def test_a_training_resumes_to_the_bit(tmp_path: Path, cache: Path, name: str) -> None:
    if name == "prodigy" and not importlib.util.find_spec("prodigyopt"):
        pytest.skip("prodigyopt is not installed")
    whole = train(tmp_path / "whole", cache, optimizer=name)
    train(tmp_path / "parts", cache, optimizer=name, steps=2)
    assert_same(train(tmp_path / "parts", cache, optimizer=name), whole)
    assert any(not torch.equal(whole[n], w) for n, w in train(tmp_path / "adamw", cache).items())
    assert len(lines(tmp_path / "whole")) == 2


def test_a_fresh_process_reads_the_states_of_eight_bits(tmp_path: Path) -> None:
    """The step itself is compiled, which takes a minute: only the file is tested here."""
    if not importlib.util.find_spec("torchao"):
        pytest.skip("torchao is not installed")
    code = """
        import sys, torch
        from vidsparse.finetune.checkpoint import load_checkpoint, save_checkpoint
        from vidsparse.finetune.optim.optimizers import know_states
        from pathlib import Path
        if sys.argv[2] == "write":
            from torchao.optim.subclass_8bit import OptimState8bit
            save_checkpoint(Path(sys.argv[1]), 1, {"optimizer": OptimState8bit.zeros((512, 16))}, keep=1)
        else:
            know_states("adamw-8bit")
            state, broken = load_checkpoint(Path(sys.argv[1]))
            assert not broken and state["optimizer"].shape == (512, 16), broken
    """
    for what in ("write", "read"):
        command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "checkpoints"), what]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr


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


def test_eight_bits_on_a_device_that_no_installed_package_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """bitsandbytes is there, and computes on a GPU alone."""
    monkeypatch.setattr(optimizers, "find_spec", lambda package: package == "bitsandbytes" or None)
    check_optimizer_on("adamw-8bit", torch.device("cuda"))
    with pytest.raises(ImportError, match=r"optimizer='adamw-8bit' needs torchao on cpu, without CUDA: pip install"):
        check_optimizer_on("adamw-8bit", torch.device("cpu"))
    check_optimizer_on("adamw", torch.device("cpu"))
