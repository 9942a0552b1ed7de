"""Mochi 1 10B: text to video, 163 frames of 848x480.

    python examples/families/mochi.py

Published for twice as many frames, 331, with a LoRA for that length: 1.63 times faster on eight H100 (Radial
Attention, arXiv 2506.19852, table 2). `vidsparse estimate mochi` predicts a bound for your size.
"""

from __future__ import annotations

import torch
from diffusers import MochiPipeline
from diffusers.utils import export_to_video

import vidsparse

pipe = MochiPipeline.from_pretrained("genmo/mochi-1-preview", torch_dtype=torch.bfloat16)
pipe.enable_model_cpu_offload()  # only what computes is on the GPU; with memory to spare: pipe.to("cuda")
with vidsparse.sparsify(pipe) as run:  # the preset "mochi", see `vidsparse presets`
    video = pipe("a fox in the snow", num_frames=163).frames[0]
export_to_video(video, "fox.mp4", fps=30)
print(run.report())
