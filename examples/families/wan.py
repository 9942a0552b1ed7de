"""Wan 2.1 14B: text to video, 81 frames of 1280x720.

    python examples/families/wan.py

Published with the settings of its preset: 1630 seconds dense and 917 sparse, 1.77 times faster, for 69 frames of
1280x768 on an H100 (Radial Attention, arXiv 2506.19852, table 1). `vidsparse estimate wan2.1-14b` predicts a bound
for your size.
"""

from __future__ import annotations

import torch
from diffusers import WanPipeline
from diffusers.utils import export_to_video

import vidsparse

pipe = WanPipeline.from_pretrained("Wan-AI/Wan2.1-T2V-14B-Diffusers", torch_dtype=torch.bfloat16)
pipe.enable_model_cpu_offload()  # only what computes is on the GPU; with memory to spare: pipe.to("cuda")
with vidsparse.sparsify(pipe) as run:  # the preset "wan2.1-14b", see `vidsparse presets`
    video = pipe("a fox in the snow", num_frames=81, height=720, width=1280).frames[0]
export_to_video(video, "fox.mp4", fps=16)
print(run.report())
