"""Settings of a LoRA training: which are refused, and the learning rate step by step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vidsparse import FreeSwim, InwardWindow, Radial, Reshaped, StepSchedule
from vidsparse.finetune.settings import Settings

SPARSE = Radial(density=0.3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, r"rank=0 must be 1 or more"),
        ({"rank": -4}, r"rank=-4 must be 1 or more"),
        ({"batch": 0}, r"batch=0"),
        ({"learning_rate": 0.0}, r"learning_rate=0\.0 must be above 0"),
        ({"alpha": 0}, r"alpha=0 must be above 0"),
        ({"learning_rate": float("nan")}, r"learning_rate=nan"),
        ({"ema": 1.0}, r"ema=1\.0 must be in \[0, 1\)"),
        ({"caption_dropout": -0.1}, r"caption_dropout=-0\.1"),
        ({"targets": ()}, r"targets is empty"),
        ({"precision": "int8"}, r"precision='int8' is unknown; choose one of no, bf16, fp16"),
        ({"positions": "ntk"}, r"positions='ntk' is unknown; choose one of plain, riflex"),
        ({"positions": "riflex"}, r"positions='riflex' needs trained_frames"),
        ({"correction": Reshaped()}, r"Reshaped\(.*needs consecutive denoising steps, which training does not have"),
        ({"decay": 1.5}, r"decay=1\.5 must be in \[0, 1\]"),
        (
            {"lr_scheduler": "sine"},
            r"lr_scheduler='sine' is unknown; choose one of constant, constant_with_warmup",
        ),
        ({"lr_scheduler": "cosine", "decay": 0.5}, r"decay=0\.5 is for a constant rate, and cosine falls by itself"),
        ({"lr_scheduler": "linear", "steps": 20}, r"warmup=20 leaves none of the 20 steps for linear to fall in"),
        ({"optimizer": "sgd"}, r"optimizer='sgd' is unknown; choose one of adamw, adamw-8bit, prodigy, muon"),
        ({"timestep_sampling": "even"}, r"timestep_sampling='even' is unknown; choose one of uniform, logit_normal"),
        ({"logit_std": 0.0}, r"logit_std=0\.0 must be above 0"),
        ({"mode_scale": 2.0}, r"mode_scale=2\.0 must be from -1 to 1\.75"),
        ({"loss_weighting": "snr"}, r"loss_weighting='snr' is unknown; choose one of none, sigma_sqrt"),
        ({"snr_gamma": 0.0}, r"snr_gamma=0\.0 must be above 0"),
        ({"dropout": 1.0}, r"dropout=1\.0 must be in \[0, 1\)"),
        ({"lora_plus_ratio": 0.0}, r"lora_plus_ratio=0\.0 must be above 0"),
        ({"log_with": "mlflow"}, r"log_with='mlflow' is unknown; choose one of auto, tensorboard, wandb"),
        ({"sample_steps": 0}, r"sample_steps=0 must be 1 or more"),
        ({"offload_activations": True, "gradient_checkpointing": False}, r"moves what gradient_checkpointing keeps"),
        ({"dora": True, "optimizer": "muon"}, r"optimizer='muon' trains matrices alone, and dora adds vectors"),
        ({"dora": True, "start": "shapes-long"}, r"start begins with the output of a LoRA, which dora changes"),
    ],
)
def test_bad_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(SPARSE, **changes)


def test_gradient_checkpointing_is_on_where_memory_is_short() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert [Settings(SPARSE).on(device).gradient_checkpointing for device in (cpu, gpu)] == [False, True]
    for needs in ("offload_base", "offload_activations"):
        assert Settings(SPARSE, **{needs: True}).on(cpu).gradient_checkpointing
    for given in (True, False):
        assert Settings(SPARSE, gradient_checkpointing=given).on(gpu).gradient_checkpointing is given


def test_the_rate_rises_stays_and_falls() -> None:
    settings = Settings(SPARSE, steps=10, warmup=2, decay=0.4, learning_rate=1.0)
    assert [settings.rate(step) for step in range(10)] == [0.5, *[1.0] * 6, 0.75, 0.5, 0.25]
    assert Settings(SPARSE, steps=10, warmup=0, learning_rate=1.0).rate(9) == 1.0


def test_the_scale_is_that_of_peft() -> None:
    assert Settings(SPARSE, rank=16, alpha=8.0).scale == 0.5
    assert Settings(SPARSE, rank=16, alpha=8.0, rslora=True).scale == 2.0


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("optim.optimizers", "process.trackers"):
        monkeypatch.setattr(f"vidsparse.finetune.{module}.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="optimizer='prodigy' needs prodigyopt: pip install prodigyopt"):
        Settings(SPARSE, optimizer="prodigy")
    with pytest.raises(ImportError, match="log_with='wandb' needs wandb, which cannot be imported: pip install wandb"):
        Settings(SPARSE, log_with="wandb")
    Settings(SPARSE, log_with="auto")


def test_a_pattern_of_two_passes_is_refused() -> None:
    with pytest.raises(ValueError, match="FreeSwim is for generation and has no gradients; train with the pattern"):
        Settings(StepSchedule(FreeSwim(InwardWindow(scale=2.0)), dense_steps=1))


def test_a_pattern_must_be_one() -> None:
    with pytest.raises(TypeError, match="must be a pattern"):
        Settings("radial")  # type: ignore[arg-type]
