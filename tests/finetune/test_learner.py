"""Steps that are not finite, dropout, and what a LoRA can be."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import assert_same, lines, pipeline, train

from vidsparse import load_lora
from vidsparse.finetune import learner as module
from vidsparse.finetune.objective import loss_of


def broken_at(steps: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the loss of these passes, counted over the training, not finite."""
    count = [-1]

    def loss(*arguments: Any, **named: Any) -> Any:
        count[0] += 1
        found, plain = loss_of(*arguments, **named)
        return (found * math.nan, plain * math.nan) if count[0] in steps else (found, plain)

    monkeypatch.setattr(module, "loss_of", loss)


def test_a_learning_rate_that_is_too_high_ends_with_an_error(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(RuntimeError, match=r"not finite in the last 5 of \d+ steps; .*try a lower learning rate"):
        train(tmp_path, cache, steps=40, warmup=0, learning_rate=1e18, save_every=1, log_every=1)
    assert not (tmp_path / "pytorch_lora_weights.safetensors").exists()
    for path in (tmp_path / "checkpoints").glob("*/state.pt"):
        assert all(weight.isfinite().all() for weight in torch.load(path)["weights"].values())

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    read = [json.loads(text, parse_constant=refuse) for text in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert sum(line.get("skipped", 0) for line in read) == 5 and read[-1]["loss"] is None


def test_one_bad_step_is_left_out_and_not_saved(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        broken_at({2}, patched)
        whole = train(tmp_path / "whole", cache, steps=5, save_every=1, keep=9, ema=0.9, log_every=1)
    names = sorted(path.name for path in (tmp_path / "whole/checkpoints").iterdir())
    assert names == [f"step-000000{step}" for step in (1, 2, 4, 5)]
    assert all(weight.isfinite().all() for weight in whole.values())
    assert [line.get("skipped", 0) for line in lines(tmp_path / "whole")] == [0, 0, 1, 0, 0]
    assert [line["loss"] is None for line in lines(tmp_path / "whole")] == [False, False, True, False, False]
    with monkeypatch.context() as patched:
        broken_at({1}, patched)
        train(tmp_path / "later", cache, steps=4, save_every=2, keep=9)
    names = sorted(path.name for path in (tmp_path / "later/checkpoints").iterdir())
    assert names == ["step-0000003", "step-0000004"], "saved as soon as a step is made again"
    with monkeypatch.context() as patched:
        broken_at({3}, patched)
        with pytest.raises(RuntimeError, match="in the last 1 of 4 steps; the checkpoint of step 2 is whole"):
            train(tmp_path / "last", cache, steps=4)


def test_one_bad_video_leaves_out_the_whole_step(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        broken_at({5}, patched)  # the second video of the third step
        train(tmp_path, cache, steps=4, batch=2, log_every=4, save_every=1, keep=9)
    assert lines(tmp_path)[-1]["skipped"] == 1
    states = {path.parent.name: torch.load(path)["weights"] for path in (tmp_path / "checkpoints").glob("*/state.pt")}
    assert sorted(states) == ["step-0000001", "step-0000002", "step-0000004"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> dict[str, torch.Tensor]:
    """What the training of these tests learns without any of the kinds."""
    return train(tmp_path_factory.mktemp("plain"), cache)


@pytest.mark.parametrize(
    "changes", [{"rslora": True}, {"dora": True}, {"dropout": 0.3}, {"lora_plus_ratio": 16.0}], ids=str
)
def test_kinds_of_lora_resume_to_the_bit_and_load(
    tmp_path: Path, cache: Path, changes: dict[str, Any], plain: dict[str, torch.Tensor]
) -> None:
    pipe = pipeline()
    whole = train(tmp_path / "whole", cache, pipe, **changes)
    train(tmp_path / "parts", cache, steps=2, **changes)
    assert_same(train(tmp_path / "parts", cache, **changes), whole)
    assert any(name not in plain or not torch.equal(weight, plain[name]) for name, weight in whole.items())
    fresh = pipeline()
    load_lora(fresh, tmp_path / "whole")
    inputs = torch.randn(1, 8, 3, 4, 4), torch.tensor([500.0]), torch.randn(1, 5, 64)
    with torch.no_grad():
        out, again = (one.transformer.eval()(*inputs)[0] for one in (pipe, fresh))
    torch.testing.assert_close(again, out)


def test_a_model_whose_timesteps_are_per_token_is_trained(tmp_path: Path, cache: Path) -> None:
    """Wan TI2V-5B gets a timestep for each token; with text alone they are equal, and a scalar means the same."""
    pipe = pipeline(patch_size=(1, 2, 2))
    pipe.register_to_config(expand_timesteps=True)
    hidden, text = torch.randn(1, 8, 3, 4, 4), torch.randn(1, 5, 64)
    with torch.no_grad():
        once, each = (
            pipe.transformer(hidden, timestep, text)[0]
            for timestep in (torch.full((1,), 700.0), torch.full((1, 3 * 2 * 2), 700.0))
        )
    torch.testing.assert_close(once, each)
    weights = train(tmp_path / "per-token", cache, pipe, samples=True)
    plain = train(tmp_path / "plain", cache, pipeline(patch_size=(1, 2, 2)))
    assert weights.keys() == plain.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, plain[name], rtol=1e-3, atol=1e-5)  # four steps of roundings
    assert (tmp_path / "per-token/samples/step-0000004-0.mp4").is_file(), "a generation has a timestep for each token"
