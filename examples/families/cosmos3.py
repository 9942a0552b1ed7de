"""Cosmos 3 Nano: text to video, 93 frames of 1280x720.

    python examples/families/cosmos3.py

We know of no published figure for sparse attention with this model; `vidsparse estimate cosmos3` predicts one.
"""

from __future__ import annotations

import torch
from diffusers import Cosmos3OmniPipeline
from diffusers.utils import export_to_video

import vidsparse

pipe = Cosmos3OmniPipeline.from_pretrained("nvidia/Cosmos3-Nano", torch_dtype=torch.bfloat16)
pipe.enable_model_cpu_offload()  # only what computes is on the GPU; with memory to spare: pipe.to("cuda")
with vidsparse.sparsify(pipe) as run:  # the preset "default", see `vidsparse presets`
    video = pipe("a fox in the snow", num_frames=93).video
export_to_video(video, "fox.mp4", fps=24)
print(run.report())
