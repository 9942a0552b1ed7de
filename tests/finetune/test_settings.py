"""Settings of a LoRA training: which are refused, and the learning rate step by step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vidsparse import Radial, Reshaped
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
        ({"sample_every": 5}, r"sample_every=5 needs sample_prompts"),
    ],
)
def test_bad_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(SPARSE, **changes)


def test_the_rate_rises_stays_and_falls() -> None:
    settings = Settings(SPARSE, steps=10, warmup=2, decay=0.4, learning_rate=1.0)
    assert [settings.rate(step) for step in range(10)] == [0.5, *[1.0] * 6, 0.75, 0.5, 0.25]
    assert Settings(SPARSE, steps=10, warmup=0, learning_rate=1.0).rate(9) == 1.0


def test_a_pattern_must_be_one() -> None:
    with pytest.raises(TypeError, match="must be a pattern"):
        Settings("radial")  # type: ignore[arg-type]


def test_targets_that_do_not_exist_are_named_with_those_that_do() -> None:
    class Attention(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.to_q, self.to_out = torch.nn.Linear(2, 2), torch.nn.ModuleList([torch.nn.Linear(2, 2)])

    model = torch.nn.ModuleDict({"attn": Attention()})
    Settings(SPARSE, targets=("to_q", "to_out.0")).check_targets(model)
    with pytest.raises(ValueError, match=r"targets to_z, q do not exist; choose from to_out\.0, to_q"):
        Settings(SPARSE, targets=("to_z", "to_q", "q")).check_targets(model)
