"""What is predicted from settings alone, against a real step of the small model that ships."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import Any

import pytest
import torch
from gloo import on_ranks
from quantised import needs
from torch import distributed
from torch.utils.flop_counter import FlopCounterMode

from vidsparse import Dense, Radial, StepSchedule, sparsify
from vidsparse.finetune import Bucket, Settings, drawn_clips, quantization_of
from vidsparse.finetune.families.wan import WanTask
from vidsparse.finetune.low_rank import add_lora
from vidsparse.finetune.memory import base as base_at_rest
from vidsparse.finetune.memory.base import STORED, cast_layers, whole_blocks
from vidsparse.finetune.memory.forecast import StepForecast
from vidsparse.finetune.memory.live import LiveBytes
from vidsparse.finetune.memory.plan import plan_training
from vidsparse.finetune.memory.swap import swapped
from vidsparse.finetune.memory.wrapped import bytes_of
from vidsparse.finetune.objective import loss_of
from vidsparse.finetune.process.groups import Groups
from vidsparse.finetune.process.zero import Zero
from vidsparse.generation.models import find_model
from vidsparse.shapes.model import load_pipeline

BUCKET = Bucket(13, 120, 120)  # 900 tokens of the first expert, which a real step takes
LARGE = Bucket(33, 128, 128)  # activations of a megabyte and more, which alone are offloaded


def predicted(settings: Settings, bucket: Bucket = BUCKET) -> StepForecast:
    return plan_training(find_model("shapes"), settings, drawn_clips(1, bucket), torch.float32).largest


def step_of(settings: Settings, bucket: Bucket = BUCKET) -> Any:
    """A function that runs a real pass; before it, the transformer has the LoRA with a gradient."""
    quantization = quantization_of(settings.base, ["transformer"], torch.float32)
    pipe = find_model("shapes").load(torch.float32, quantization)
    weights = add_lora(pipe, settings)
    if settings.base == "float8":
        cast_layers(pipe.transformer, settings.half or torch.float32)
    module = pipe.transformer
    if settings.gradient_checkpointing:
        module.enable_gradient_checkpointing()
    module.train()
    for weight in weights.values():
        weight.grad = torch.zeros_like(weight)

    def step() -> None:
        task = WanTask()
        example = task.blank(module.config, ((bucket.frames + 3) // 4, bucket.height // 4, bucket.width // 4), 16)
        example = replace(example, **{name: torch.rand_like(x) for name, x in vars(example).items() if name != "more"})
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bf16"), whole_blocks(settings.base):
            loss, _ = loss_of(module, example, task)
        loss.backward()

    return module, step


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_memory_is_that_of_a_real_step(checkpointing: bool, precision: str) -> None:
    """The real step is sparse, on the CPU; every tensor that an operator makes is counted while it lives."""
    settings = Settings(
        Radial(density=0.3, tile=(1, 8, 8)), rank=16, gradient_checkpointing=checkpointing, precision=precision
    )
    module, step = step_of(settings)
    gc.collect()  # garbage that is freed later would be counted until then
    live = LiveBytes()
    with sparsify(module, settings.pattern), live:
        weights = list(module.parameters())
        live.leave_out([*weights, *module.buffers(), *(w.grad for w in weights if w.grad is not None)])
        step()
    found = predicted(settings)
    assert found.activations == pytest.approx(live.peak, rel=0.15)
    of_model = [w for name, w in module.named_parameters() if "lora" not in name]
    assert found.weights == sum(w.numel() * w.element_size() for w in (*of_model, *module.buffers()))
    assert found.lora == sum(8 * w.numel() for w in module.parameters() if w.requires_grad)


def test_what_is_left_out_is_unknown_once_it_is_freed() -> None:
    """Another tensor may then be at its address, and counts."""
    tensor, live = torch.zeros(100), LiveBytes()
    live.leave_out([tensor])
    with live:
        assert live._known == live._own == {tensor.untyped_storage()._cdata}
        copy = tensor + 1
        assert (live.now, live.whole) == (400, 400)
        del tensor, copy
        assert (live.now, live.whole, live._known, live._own) == (0, 0, set(), set())


# Without gradient checkpointing, the backward pass keeps float8 weights as they compute.
AT_REST = [
    ("int8", True, True, "no", LARGE),
    ("float8", True, False, "no", LARGE),
    ("none", True, True, "no", LARGE),
    ("float8", False, False, "bf16", BUCKET),
]


@pytest.mark.parametrize(("base", "checkpointing", "away", "precision", "bucket"), AT_REST)
def test_memory_of_a_base_at_rest_is_that_of_a_real_step(
    base: str, checkpointing: bool, away: bool, precision: str, bucket: Bucket
) -> None:
    if base == "int8":
        needs("torchao")
    settings = Settings(
        *(Radial(density=0.3, tile=(1, 8, 8)),),
        **dict(rank=16, precision=precision, base=base, offload_base=away, gradient_checkpointing=checkpointing),
    )
    module, step = step_of(settings, bucket)
    frozen = [w for name, w in module.named_parameters() if "lora" not in name]
    stored = sum(bytes_of(weight) for weight in (*frozen, *module.buffers()))
    low = sum(bytes_of(weight) for weight in frozen if weight.dtype == STORED)
    gc.collect()
    live, learned = LiveBytes(), [weight for weight in module.parameters() if weight.requires_grad]
    with sparsify(module, settings.pattern), swapped(module, learned, torch.device("cpu"), away) as swap, live:
        weights = list(module.parameters())
        tensors = [*weights, *module.buffers(), *(w.grad for w in weights if w.grad is not None)]
        live.leave_out(tensors)
        step()
        gc.collect()
        # Layers that go back to float8 do so in memory of their own, which only the second step finds there.
        live.peak = live.now
        step()
    found = predicted(settings, bucket)
    assert found.activations == pytest.approx(live.peak - (0 if away else low), rel=0.15)
    assert found.weights + found.resting == stored
    assert found.resting == (0 if swap is None else swap.resting)
    plain = predicted(replace(settings, base="none", offload_base=False), bucket)
    assert found.weights < plain.weights and (found.resting > 0) == away


def test_nf4_takes_half_a_byte_and_a_scale_for_each_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """bitsandbytes' own layers cannot run on tensors without content, nor without CUDA in diffusers."""
    monkeypatch.setattr(base_at_rest, "find_spec", lambda name: True)
    settings = dict(rank=16, precision="bf16", gradient_checkpointing=True)
    plain, low = (predicted(Settings(Dense(), base=kind, **settings)) for kind in ("none", "nf4"))  # type: ignore[arg-type]
    transformer = load_pipeline(model="shapes").transformer
    numbers = sum(
        module.weight.numel()
        for name, module in transformer.named_modules()
        if isinstance(module, torch.nn.Linear) and "time_embedder" not in name
    )
    saved = 4 * numbers - numbers * (1 / 2 + 1 / 64 + 4 / (64 * 256))
    assert plain.weights - low.weights == pytest.approx(saved, rel=1e-3)
    assert low.activations == pytest.approx(plain.activations, rel=0.05)


@pytest.mark.parametrize("checkpointing", [True, False])
def test_operations_are_those_of_a_real_step(checkpointing: bool) -> None:
    """Dense, in the model's own attention, as PyTorch counts them."""
    settings = Settings(Dense(), rank=2, gradient_checkpointing=checkpointing, precision="no")
    _, step = step_of(settings)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step()
    found = predicted(settings)
    # The math backend keeps its scores: it computes four products backward, not five.
    assert found.density == 1.0
    assert found.flops == pytest.approx(counter.get_total_flops(), rel=0.15)


def test_what_settings_change() -> None:
    base = dict(rank=16, precision="no", gradient_checkpointing=True)
    plain = predicted(Settings(Dense(), **base), LARGE)  # type: ignore[arg-type]
    away = predicted(Settings(Dense(), offload_activations=True, **base), LARGE)  # type: ignore[arg-type]
    assert 0 < away.offloaded < plain.activations and away.memory == plain.memory - away.offloaded
    averaged = predicted(Settings(Dense(), ema=0.9, **base), LARGE)  # type: ignore[arg-type]
    assert averaged.states * 2 == plain.states * 3
    schedule = StepSchedule(Radial(density=0.3), dense_steps=3)
    sparse = predicted(Settings(schedule, inference_steps=30, **base), LARGE)  # type: ignore[arg-type]
    assert 0.3 < sparse.density < 1 and sparse.flops < plain.flops


def test_an_expert_that_would_train_dense_is_refused() -> None:
    """Also where nothing is loaded."""
    schedule = StepSchedule(Radial(density=0.5), dense_steps=13)
    with pytest.raises(ValueError, match=r"and transformer computes from 0.80 to 1.00: it would train without sparse"):
        predicted(Settings(schedule, inference_steps=20))
    assert predicted(Settings(schedule, inference_steps=20, transformer="transformer_2")).density < 1


def peak_of_a_third(settings: Settings) -> int:
    module, step = step_of(settings)
    gc.collect()
    live, groups = LiveBytes(), Groups(3, distributed.get_rank(), 3)
    with sparsify(module, settings.pattern), groups.sharing(module, torch.device("cpu")), live:
        weights = list(module.parameters())
        live.leave_out([*weights, *module.buffers(), *(w.grad for w in weights if w.grad is not None)])
        step()
    return live.peak


def test_memory_of_a_shared_clip_is_that_of_a_real_step() -> None:
    settings = Settings(
        *(Radial(density=0.3, tile=(1, 8, 8)),),
        **dict(rank=16, precision="bf16", gradient_checkpointing=True, context_parallel=3),  # type: ignore[arg-type]
    )
    found = plan_training(find_model("shapes"), settings, drawn_clips(1, BUCKET), torch.float32, 3).largest
    for peak in on_ranks(3, peak_of_a_third, settings):
        assert found.activations == pytest.approx(peak, rel=0.15)


def test_processes_that_share_a_clip_divide_its_activations() -> None:
    base = dict(rank=16, precision="no", gradient_checkpointing=True, offload_activations=True)
    one, shared = (Settings(Dense(), context_parallel=count, **base) for count in (1, 3))  # type: ignore[arg-type]
    clips, model = drawn_clips(1, LARGE), find_model("shapes")
    whole, parts = (plan_training(model, settings, clips, torch.float32, 6) for settings in (one, shared))
    assert (whole.videos, parts.videos) == (6, 2)
    found, expected = parts.largest, whole.largest
    assert found.activations < expected.activations and found.offloaded == expected.offloaded // 3
    assert found.flops * 3 == pytest.approx(expected.flops) and found.weights == expected.weights
    with pytest.raises(ValueError, match="context_parallel=3 does not divide the 4 processes"):
        plan_training(model, shared, clips, torch.float32, 4)
    with pytest.raises(ValueError, match=r"context_parallel=2 does not divide the 3 heads of Wan.*; these do: 3"):
        plan_training(model, replace(shared, context_parallel=2), clips, torch.float32, 2)


def test_copies_of_weights_are_whole_in_each_process() -> None:
    base = dict(rank=2, precision="no", gradient_checkpointing=True, offload_base=True)
    clips, model = drawn_clips(1, Bucket(9, 16, 16)), find_model("shapes")
    one, shared = (
        plan_training(model, Settings(Dense(), context_parallel=count, **base), clips, torch.float32, count).largest  # type: ignore[arg-type]
        for count in (1, 3)
    )
    blocks = load_pipeline(model="shapes").transformer.blocks
    two = 2 * sum(weight.nbytes for weight in blocks[0].parameters())
    assert two < shared.activations < one.activations and one.weights == shared.weights


def test_divided_weights_are_a_part_and_two_blocks() -> None:
    settings = Settings(Dense(), rank=16, gradient_checkpointing=True)
    clips, model = drawn_clips(1, BUCKET), find_model("shapes")
    whole, parts = (plan_training(model, settings, clips, torch.float32, 4, divided) for divided in (False, True))
    transformer = load_pipeline(model="shapes").transformer
    frozen, blocks = (sum(w.nbytes for w in part.parameters()) for part in (transformer, transformer.blocks))
    outside = frozen - blocks
    held = frozen / 4 + outside + 2 * blocks / len(transformer.blocks)
    assert parts.largest.weights == pytest.approx(held + whole.largest.weights - frozen, abs=4)
    assert parts.largest.activations == whole.largest.activations and parts.videos == 4


def test_divided_states_are_a_part() -> None:
    settings = Settings(Dense(), rank=16, ema=0.9)
    clips, model = drawn_clips(1, BUCKET), find_model("shapes")
    whole, parts = (
        plan_training(model, settings, clips, torch.float32, 4, zero=zero).largest for zero in (None, Zero(2))
    )
    learned = whole.lora // 8
    assert whole.states == (8 + 4) * learned and parts.states == 8 * -(-learned // 4) + 4 * learned
    # Weights, once more the part that is stepped, the part of the gradient, and a bucket as large.
    assert parts.lora == pytest.approx(4 * learned * (1 + 3 / 4), rel=1e-3)
    assert (parts.weights, parts.activations) == (whole.weights, whole.activations)


def test_a_plan_counts_clips_and_epochs() -> None:
    clips = [*drawn_clips(3, BUCKET), *drawn_clips(1, Bucket(9, 120, 120))]
    found = plan_training(find_model("shapes"), Settings(Dense(), rank=2, steps=6, batch=2), clips, torch.float32, 2)
    assert found.clips == {BUCKET: 3, Bucket(9, 120, 120): 1} and found.epochs == 6.0 and found.videos == 4
    assert found.largest is found.sizes[BUCKET]
    assert found.flops == pytest.approx((3 * found.sizes[BUCKET].flops + found.sizes[Bucket(9, 120, 120)].flops) / 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": ("to_z",)}, "targets to_z do not exist"),
        ({"transformer": "transformer_3"}, "transformer_3' does not exist in shapes; it has transformer"),
        ({"loss_weighting": "min_snr"}, "is not for a model that predicts flow"),
        ({"pattern": StepSchedule(Radial(density=0.5), dense_steps=30)}, "has no sparse step among 30"),
        ({"pattern": StepSchedule(Radial(density=0.5), dense_layers=(99,))}, "dense_layers.*99"),
        ({"start": "nowhere"}, "no LoRA 'nowhere'"),
        ({"start": "shapes-long", "rank": 4}, "does not fit: its .* is of rank 64, in a training of rank 4"),
    ],
)
def test_what_a_training_refuses_a_plan_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        predicted(Settings(**{"pattern": Dense(), **changes}))
    with pytest.raises(ValueError, match="10 frames do not fit"):
        plan_training(find_model("shapes"), Settings(Dense()), drawn_clips(1, Bucket(10, 64, 64)), torch.float32)
