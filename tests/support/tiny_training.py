"""A small training for the tests: a tiny random Wan pipeline, drawn videos, a few steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from accelerate.state import AcceleratorState
from diffusers import UniPCMultistepScheduler, WanPipeline
from safetensors.torch import load_file

from vidsparse import Radial, StepSchedule
from vidsparse.finetune import Bucket, Settings, drawn_clips, finetune
from vidsparse.shapes import model

BUCKET = Bucket(9, 16, 16)  # 3x4x4 tokens
PATTERN = StepSchedule(Radial(density=0.5, tile=(1, 2, 2)), dense_steps=3, dense_layers=(0,))
SMALL: dict[str, Any] = dict(rank=4, steps=4, learning_rate=3e-3, warmup=2, precision="no", log_every=2, save_every=2)
SMALL |= dict(caption_dropout=0.0, gradient_checkpointing=False, inference_steps=20, samples=False)


# The picture of the losses, a quarter of a second at each save; test_curve.py and the command's tests have it.
without_pictures = mock.patch("vidsparse.finetune.train.draw_curve", lambda folder: None)


def pipeline(num_attention_heads: int = 1, **changes: Any) -> WanPipeline:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return WanPipeline(
            tokenizer=model.build_tokenizer(),
            text_encoder=model.build_text_encoder().eval(),
            vae=model.build_vae().eval(),
            transformer=model.build_transformer(
                num_layers=2, num_attention_heads=num_attention_heads, **changes
            ).eval(),
            scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        )


@without_pictures
def train(
    folder: Path,
    cache: Path,
    pipe: Any = None,
    videos: int = 4,
    say: Any = lambda text: None,
    validation_share: float = 0.0,
    bucket: Bucket = BUCKET,
    heads: int = 1,
    **changes: Any,
) -> dict[str, torch.Tensor]:
    """Train, and read the weights that were written."""
    settings = Settings(**{"pattern": PATTERN, **SMALL, **changes})
    sides = dict(height=bucket.height, width=bucket.width, num_frames=bucket.frames)
    sampling = dict(**sides, num_inference_steps=2, max_sequence_length=model.MAX_WORDS)
    AcceleratorState._reset_state(reset_partial_state=True)
    finetune(
        pipeline(heads) if pipe is None else pipe,
        drawn_clips(videos, bucket),
        settings,
        folder,
        base="tiny",
        sampling=sampling,
        cache=cache,
        validation_share=validation_share,
        cpu=True,
        say=say,
    )
    return load_file(folder / "pytorch_lora_weights.safetensors")


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def measured(line: dict[str, Any]) -> dict[str, Any]:
    """A line of the log without what differs from run to run: times and memory."""
    changing = ("seconds", "seconds_per_step", "videos_per_second", "peak_memory")
    return {name: value for name, value in line.items() if name not in changing}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
