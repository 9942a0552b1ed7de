"""A training that cannot begin leaves the pipeline as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from tiny_training import pipeline, train

from vidsparse.finetune import train as module

STEPS = {
    "the initial weights": (module, "add_lora", 1),
    "positions": (module, "extend_positions", 0),
    "sparse attention": (module, "sparsify", 0),
    "the learner": (module, "Learner", 0),
    "accelerate": (Accelerator, "prepare", 1),
}


def state(pipe: Any) -> dict[str, Any]:
    """Everything that a training changes."""
    model = pipe.transformer
    return {
        "parts": {name: id(part) for name, part in model.named_modules()},
        "modes": {name: part.training for name, part in model.named_modules()},
        "learns": {name: weight.requires_grad for name, weight in model.named_parameters()},
        "values": {name: hash(value.numpy().tobytes()) for name, value in model.state_dict().items()},
        "positions": hash(model.rope.freqs_cos.numpy().tobytes()),
        "processors": {name: id(processor) for name, processor in model.attn_processors.items()},
        "hooks": (len(model._forward_pre_hooks), len(model._forward_hooks), "forward" in model.__dict__),
        "loras": list(getattr(model, "peft_config", {})),
        "recomputes": model.is_gradient_checkpointing,
        "scheduler": id(pipe.scheduler),
    }


@pytest.mark.parametrize("at", STEPS)
def test_a_failure_puts_everything_back(at: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = pipeline()
    pipe.transformer.blocks[0].train()
    pipe.transformer.blocks[1].requires_grad_(False)
    before, (place, name, first) = state(pipe), STEPS[at]
    real = getattr(place, name)

    def fails(*arguments: Any, **more: Any) -> Any:
        if first:
            real(*arguments, **more)  # all of it is done, and then it fails
        raise RuntimeError("no memory")

    changes: dict[str, Any] = dict(gradient_checkpointing=True, precision="bf16", trained_frames=5, positions="yarn")
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="no memory"):
        patch.setattr(place, name, fails)
        train(tmp_path / "run", cache, pipe, flow_shift=9.0, ema=0.9, **changes)
    assert state(pipe) == before
    weights = train(tmp_path / "run", cache, pipe, flow_shift=9.0, **changes)
    assert all(torch.isfinite(weight).all() for weight in weights.values())
