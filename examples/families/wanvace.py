"""Wan-VACE 14B: text to video, 81 frames of 832x480; `video` and `mask` edit a video.

    python examples/families/wanvace.py

We know of no published figure for sparse attention with this model; `vidsparse estimate wanvace` predicts one.
"""

from __future__ import annotations

import torch
from diffusers import WanVACEPipeline
from diffusers.utils import export_to_video

import vidsparse

pipe = WanVACEPipeline.from_pretrained("Wan-AI/Wan2.1-VACE-14B-diffusers", torch_dtype=torch.bfloat16)
pipe.enable_model_cpu_offload()  # only what computes is on the GPU; with memory to spare: pipe.to("cuda")
with vidsparse.sparsify(pipe) as run:  # the preset "default", see `vidsparse presets`
    video = pipe(prompt="a fox in the snow", num_frames=81).frames[0]
export_to_video(video, "fox.mp4", fps=16)
print(run.report())
