"""Kandinsky 5 Lite: text to video, 121 frames of 768x512.

    python examples/families/kandinsky5.py

We know of no published figure for sparse attention with this model; `vidsparse estimate kandinsky5` predicts one.
"""

from __future__ import annotations

import torch
from diffusers import Kandinsky5T2VPipeline
from diffusers.utils import export_to_video

import vidsparse

pipe = Kandinsky5T2VPipeline.from_pretrained(
    "kandinskylab/Kandinsky-5.0-T2V-Lite-sft-5s-Diffusers", torch_dtype=torch.bfloat16
)
pipe.to("cuda")
with vidsparse.sparsify(pipe) as run:  # the preset "default", see `vidsparse presets`
    video = pipe("a fox in the snow", num_frames=121).frames[0]
export_to_video(video, "fox.mp4", fps=24)
print(run.report())
