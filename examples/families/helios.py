"""Helios 14B: text to video, 132 frames of 640x384, in chunks of 33.

    python examples/families/helios.py

A chunk has few tokens (8,640 at 640x384), so little is to be gained. We know of no published figure for sparse
attention with this model; `vidsparse estimate helios` predicts one.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLWan, HeliosPipeline
from diffusers.utils import export_to_video

import vidsparse

model = "BestWishYsh/Helios-Base"
vae = AutoencoderKLWan.from_pretrained(model, subfolder="vae", torch_dtype=torch.float32)
pipe = HeliosPipeline.from_pretrained(model, vae=vae, torch_dtype=torch.bfloat16)
pipe.enable_model_cpu_offload()  # only what computes is on the GPU; with memory to spare: pipe.to("cuda")
with vidsparse.sparsify(pipe) as run:  # the preset "default", see `vidsparse presets`
    video = pipe("a fox in the snow", num_frames=132, height=384, width=640).frames[0]
export_to_video(video, "fox.mp4", fps=24)
print(run.report())
