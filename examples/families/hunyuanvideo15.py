"""HunyuanVideo 1.5: text to video, 121 frames of 848x480.

    python examples/families/hunyuanvideo15.py

We know of no published figure for sparse attention with this model; `vidsparse estimate hunyuanvideo15` predicts one.
"""

from __future__ import annotations

import torch
from diffusers import HunyuanVideo15Pipeline
from diffusers.utils import export_to_video

import vidsparse

pipe = HunyuanVideo15Pipeline.from_pretrained(
    "hunyuanvideo-community/HunyuanVideo-1.5-480p_t2v", torch_dtype=torch.bfloat16
)
pipe.enable_model_cpu_offload()  # only what computes is on the GPU; with memory to spare: pipe.to("cuda")
with vidsparse.sparsify(pipe) as run:  # the preset "default", see `vidsparse presets`
    video = pipe("a fox in the snow", num_frames=121).frames[0]
export_to_video(video, "fox.mp4", fps=24)
print(run.report())
