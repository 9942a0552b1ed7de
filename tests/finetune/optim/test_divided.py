"""DeepSpeed's ZeRO teaches a LoRA what DDP does, in two processes on a CPU; needs DeepSpeed, but for the formulas."""

from __future__ import annotations

import itertools
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from gloo import free_port, on_ranks
from shared_training import Asked, compile_nothing, train_each, train_on
from tiny_training import SMALL, lines, measured, pipeline, train
from torch import distributed

from vidsparse import ProxyTokens
from vidsparse.finetune import learner
from vidsparse.finetune.objective import loss_of
from vidsparse.finetune.optim.divided import BUCKET, bucket_of, held_of_learned
from vidsparse.finetune.process.zero import Zero

# Beside DDP, ZeRO adds the gradients of a step's videos in another order, and divides by the clipping's factor where
# DDP multiplies: a few roundings. AdamW divides a gradient by its own size, so that a step moves a weight by the
# relative error times the rate; where videos cancel, the error is larger, which the root of the mean square bears.
ROUNDING = 8 * torch.finfo(torch.float32).eps
KINDS: dict[str, dict[str, Any]] = {
    "videos": dict(batch=2, clip=0.05, ema=0.9, lora_plus_ratio=4.0, videos=5, validation_share=0.2),
    "dora": dict(dora=True, clip=0.05, gradient_checkpointing=True, precision="bf16"),
    "shared": dict(heads=2, context_parallel=2, offload_base=True, gradient_checkpointing=True, base="float8"),
    "proxies": dict(correction=ProxyTokens((1, 2, 2), learned=True), batch=2, steps=4),
    "offloaded": dict(offload_activations=True, gradient_checkpointing=True, dropout=0.1),
}


def needs_deepspeed() -> None:
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed; the extra deepspeed has it")


def assert_alike(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], steps: int) -> None:
    assert found.keys() == expected.keys()
    moved = torch.cat([(found[name].double() - expected[name].double()).flatten() for name in expected])
    assert float(moved.square().mean().sqrt()) <= steps * SMALL["learning_rate"] * 4 * ROUNDING  # LoRA+ has 4 times it
    assert any(float(weight.abs().max()) > 1e-3 for name, weight in found.items() if "lora_B" in name)


def assert_same_log(found: Path, expected: Path) -> None:
    logs = [[measured(line) for line in lines(folder)] for folder in (found, expected)]
    assert [line["step"] for line in logs[0]] == [line["step"] for line in logs[1]]
    for line, other in zip(*logs, strict=True):
        assert line.keys() == other.keys() and line.get("skipped") == other.get("skipped")
        for name in ("loss", "grad_norm", "validation_loss"):
            if other.get(name) is not None:
                assert line[name] == pytest.approx(other[name], rel=ROUNDING)


@pytest.mark.parametrize("kind", KINDS)
def test_divided_states_teach_what_whole_ones_do(tmp_path: Path, cache: Path, kind: str) -> None:
    needs_deepspeed()
    with_frozen = not any(name.startswith("offload") for name in KINDS[kind])
    stages = (0, 1, 2, 3) if with_frozen else (0, 1, 2)
    asked = [Asked(tmp_path / str(stage), False, KINDS[kind], stage) for stage in stages]
    whole, *found = train_on(2, cache, asked)
    states = [torch.load(one.folder / "checkpoints/step-0000004/state.pt") for one in asked]
    for one, weights, state in zip(asked[1:], found, states[1:], strict=True):
        assert_alike(weights, whole, 4)
        assert_same_log(one.folder, asked[0].folder)
        assert state.keys() == states[0].keys()
        groups = [[group["params"] for group in each["optimizer"]["param_groups"]] for each in (state, states[0])]
        assert groups[0] == groups[1]
        held, expected = state["optimizer"]["state"], states[0]["optimizer"]["state"]
        assert held.keys() == expected.keys()
        for number in expected:
            assert held[number].keys() == expected[number].keys() and held[number]["step"] == 4
            assert held[number]["exp_avg"].shape == expected[number]["exp_avg"].shape
            torch.testing.assert_close(held[number]["exp_avg"], expected[number]["exp_avg"], rtol=1e-4, atol=1e-6)


def test_it_goes_on_with_states_divided_in_another_way(tmp_path: Path, cache: Path) -> None:
    needs_deepspeed()
    changes = dict(batch=2, clip=0.05, ema=0.9, lora_plus_ratio=4.0)
    asked = [Asked(tmp_path / "whole", False, changes, 2)]
    for order in ((2, 2), (2, 0), (0, 1), (3, 2)):
        for stage, steps in zip(order, (2, 4), strict=True):
            asked.append(Asked(tmp_path / str(order), False, {**changes, "steps": steps}, stage))
    found = train_on(2, cache, asked)
    assert all(torch.equal(found[2][name], found[0][name]) for name in found[0]), "to the bit, where nothing changes"
    assert_alike(found[4], found[0], 4)
    assert_alike(found[6], found[0], 4)
    assert_alike(found[8], found[0], 4)


def with_broken_passes(cache: Path, asked: list[Asked], ports: list[int]) -> list[dict[str, torch.Tensor]]:
    """Train; the loss of one pass of eight is not finite in the second process, though its gradient is."""
    count = itertools.count()

    def loss(*arguments: Any, **named: Any) -> Any:
        found, plain = loss_of(*arguments, **named)
        return found, plain * math.nan if next(count) % 8 == 3 and os.environ["RANK"] == "1" else plain

    learner.loss_of = loss  # type: ignore[assignment]
    return train_each(cache, asked, ports)


def test_a_loss_of_one_process_leaves_out_the_step_of_all(tmp_path: Path, cache: Path) -> None:
    needs_deepspeed()
    changes = dict(batch=2, log_every=1, steps=4)
    asked = [Asked(tmp_path / str(stage), False, changes, stage) for stage in (0, 1, 2)]
    whole, *found = on_ranks(2, with_broken_passes, cache, asked, [free_port() for _ in asked])[0]
    for one, weights in zip(asked[1:], found, strict=True):
        assert_alike(weights, whole, 4)
        assert [line.get("skipped", 0) for line in lines(one.folder)] == [0, 1, 0, 0]


def what_closing_leaves(folder: Path, cache: Path, port: int) -> tuple[bool, bool, dict[str, torch.Tensor]]:
    """Whether a LoRA's weights are as peft makes them, whether the pipeline answers, and the weights."""
    rank, pipe = str(distributed.get_rank()), pipeline()
    os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ.update(ACCELERATE_USE_DEEPSPEED="true")
    compile_nothing()
    found = train(folder, cache, pipe)
    learned = [weight for name, weight in pipe.transformer.named_parameters() if "lora" in name]
    bare = all(not vars(weight) and weight.untyped_storage().nbytes() == weight.nbytes for weight in learned)
    inputs = torch.randn(1, 8, 3, 4, 4), torch.tensor([500.0]), torch.randn(1, 5, 64)
    if rank == "0":
        pipe.transformer(*inputs)[0].sum().backward()  # no hook of DeepSpeed waits for the other process
    return bare, bool(pipe.transformer(*inputs)[0].isfinite().all()), found


def test_closing_leaves_the_pipeline_as_it_was_but_for_the_lora(tmp_path: Path, cache: Path) -> None:
    needs_deepspeed()
    answers = on_ranks(2, what_closing_leaves, tmp_path / "out", cache, free_port())
    assert all(bare and finite for bare, finite, _ in answers)


def test_a_bucket_is_a_part_and_holds_the_largest_weight() -> None:
    assert bucket_of([6, 3, 4], 2) == 7
    assert bucket_of([9, 3, 1], 4) == 9
    assert bucket_of([BUCKET, 3 * BUCKET], 2) == BUCKET


def test_what_a_process_holds_of_weights_and_gradient() -> None:
    sizes = [6, 3, 4]  # parts of 7
    assert held_of_learned(sizes, 2, Zero(2)) == 4 * (13 + 7 + 7 + 7)
    assert held_of_learned(sizes, 2, Zero(1)) == 4 * (13 + 7 + 13 + 7)
    assert held_of_learned(sizes, 2, Zero(2, {"zero_optimization.reduce_bucket_size": 50})) == 4 * (13 + 7 + 7 + 50)
