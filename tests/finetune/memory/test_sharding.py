"""Frozen weights that processes divide give the training that whole ones give."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from gloo import on_ranks
from peft import LoraConfig
from shared_training import FSDP2, Asked, train_on
from tiny_training import PATTERN, assert_same, lines, measured, pipeline, train
from torch import distributed

from vidsparse.finetune import Settings
from vidsparse.finetune.checks import check_device, check_pipeline
from vidsparse.finetune.memory.sharding import check_shardable, shard, views_are_fine

ALL: dict[str, Any] = dict(videos=5, validation_share=0.2, log_every=1)
ALL |= dict(samples=True, sample_every=2, sample_steps=2, inference_steps=6)
KINDS: dict[str, dict[str, Any]] = {
    "recomputed": {"gradient_checkpointing": True, "dropout": 0.2, **ALL},
    "dora-bf16": {"dora": True, "batch": 2, "ema": 0.9, "precision": "bf16"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_divided_weights_train_as_whole_ones_to_the_bit(tmp_path: Path, cache: Path, kind: str) -> None:
    asked = [Asked(tmp_path / str(divided), divided, KINDS[kind]) for divided in (False, True)]
    whole, found = train_on(2, cache, asked)
    assert_same(found, whole)
    logs = [[measured(line) for line in lines(one.folder)] for one in asked]
    assert logs[0] == logs[1]
    if "samples" in KINDS[kind]:
        # Five levels of one video: the second process computes once for nothing, which must not count.
        train(tmp_path / "one", cache, **KINDS[kind] | {"batch": 2, "steps": 1, "samples": False, "sample_every": 0})
        first = [
            next(x["validation_loss"] for x in found if "validation_loss" in x)
            for found in (logs[1], lines(tmp_path / "one"))
        ]
        assert first[0] == pytest.approx(first[1], rel=1e-5)
        videos = [sorted((one.folder / "samples").iterdir()) for one in asked]
        assert [path.name for path in videos[0]] == [f"step-000000{step}-0.mp4" for step in (0, 2, 4)]
        assert [path.read_bytes() for path in videos[0]] == [path.read_bytes() for path in videos[1]]


def test_it_goes_on_with_weights_divided_in_another_way(tmp_path: Path, cache: Path) -> None:
    halves = [dict(steps=steps, ema=0.9) for steps in (2, 4)]
    orders = [(True, True), (True, False), (False, True)]
    asked = [Asked(tmp_path / "whole", True, halves[1])]
    asked += [
        Asked(tmp_path / str(order), divided, changes)
        for order in orders
        for divided, changes in zip(order, halves, strict=True)
    ]
    found = train_on(2, cache, asked)
    for place in (2, 4, 6):
        assert_same(found[place], found[0])
    said: list[str] = []
    train(tmp_path / "whole", cache, batch=2, steps=5, ema=0.9, say=said.append)
    assert said == ["resuming from step 4"], "one process computes the videos of both"


def test_what_a_warning_says_elsewhere_is_heard() -> None:
    before = [*warnings.filters]
    with views_are_fine():
        warnings.warn("FSDP2-wrapped module (X) returned a view tensor. An in-place op", UserWarning, stacklevel=1)
    assert warnings.filters == before


def held_and_answered(dtype: torch.dtype) -> tuple[float, list[torch.Tensor], list[torch.Tensor]]:
    """The part of the frozen bytes that a process holds, and what a transformer answers, before and afterwards."""
    module: Any = pipeline().transformer
    module.requires_grad_(False).to(dtype)
    module.scale_shift_table.data = module.scale_shift_table.data.float()  # as in checkpoints: some stay float32
    module.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_v"], init_lora_weights=False))
    learned = [weight for weight in module.parameters() if weight.requires_grad]
    torch.manual_seed(distributed.get_rank())
    inputs = torch.randn(1, 8, 3, 4, 4, dtype=dtype), torch.tensor([500.0]), torch.randn(1, 5, 64, dtype=dtype)

    def answer() -> list[torch.Tensor]:
        out = module(*inputs)[0]
        return [out.detach(), *torch.autograd.grad(out.float().square().sum(), learned)]

    before, frozen = answer(), sum(w.nbytes for w in module.parameters() if not w.requires_grad)
    shard(module, learned, torch.device("cpu"), 2)
    after = answer()
    parts = [w.to_local() for w in module.parameters() if not w.requires_grad]  # all of them are divided
    assert all(type(weight) is torch.nn.Parameter for weight in learned)
    return sum(part.nbytes for part in parts) / frozen, before, after


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_each_process_holds_a_half_and_answers_alike(dtype: torch.dtype) -> None:
    for share, before, after in on_ranks(2, held_and_answered, dtype):
        assert 0.45 < share < 0.55
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"base": "float8"}, "base='float8'"),
        ({"offload_base": True}, "offload_base"),
        ({"offload_activations": True}, "offload_activations"),
        ({"base": "float8", "offload_base": True}, "base='float8' and offload_base"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_settings_that_do_not_go_with_it(changes: dict[str, Any], named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(PATTERN, **changes)
    check_device(settings, cpu=True)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", FSDP2["ACCELERATE_USE_FSDP"])
    with pytest.raises(NotImplementedError, match=f"cannot be combined with {named}; leave these out"):
        check_device(settings, cpu=True)


def test_transformers_that_cannot_be_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotImplementedError, match="FSDP gathers blocks, and Linear has no list of them"):
        check_shardable(torch.nn.Linear(2, 2))
    pipe = pipeline()

    class Int8Tensor(torch.nn.Parameter):
        pass

    layer: Any = pipe.transformer.blocks[0].attn1.to_q
    layer.weight = Int8Tensor(layer.weight.detach(), requires_grad=False)
    assert type(layer.weight) is Int8Tensor
    check_pipeline(pipe, Settings(PATTERN))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(NotImplementedError, match=r"these are quantised \(Int8Tensor\); load the model without"):
        check_pipeline(pipe, Settings(PATTERN))
