"""Cosmos-Predict2.5 2B: text to video, 93 frames of 1280x704. It needs the package `cosmos_guardrail`.

    python examples/families/cosmos.py

We know of no published figure for sparse attention with this model; `vidsparse estimate cosmos2.5-2b` predicts one.
"""

from __future__ import annotations

import torch
from diffusers import Cosmos2_5_PredictBasePipeline
from diffusers.utils import export_to_video

import vidsparse

pipe = Cosmos2_5_PredictBasePipeline.from_pretrained(
    "nvidia/Cosmos-Predict2.5-2B", revision="diffusers/base/post-trained", torch_dtype=torch.bfloat16
)
pipe.to("cuda")
with vidsparse.sparsify(pipe) as run:  # the preset "default", see `vidsparse presets`
    video = pipe(prompt="a fox in the snow", num_frames=93).frames[0]
export_to_video(video, "fox.mp4", fps=16)
print(run.report())
