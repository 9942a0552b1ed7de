"""AnyFlow-FAR 1.3B: text to video, 81 frames of 832x480, in chunks of three latent frames.

    python examples/families/anyflowfar.py

The first step of each chunk is dense, and the first chunk as a whole, which sees no frames before it. We know of no
published figure for sparse attention with this model; `vidsparse estimate anyflow-far-1.3b` predicts one.
`window` is the most frames that it keeps beside coarser ones.
"""

from __future__ import annotations

import torch
from diffusers import AnyFlowFARPipeline
from diffusers.utils import export_to_video

import vidsparse

pipe = AnyFlowFARPipeline.from_pretrained("nvidia/AnyFlow-FAR-Wan2.1-1.3B-Diffusers", torch_dtype=torch.bfloat16)
pipe.enable_model_cpu_offload()  # only what computes is on the GPU; with memory to spare: pipe.to("cuda")
# Made for chunks; without a pattern, it is the preset "default", see `vidsparse presets`.
pattern = vidsparse.StepSchedule(vidsparse.LightForcing(0.3, 0.2, window=9), dense_steps=1)
with vidsparse.sparsify(pipe, pattern) as run:
    video = pipe("a fox in the snow", num_inference_steps=4, num_frames=81, height=480, width=832).frames[0]
export_to_video(video, "fox.mp4", fps=16)
print(run.report())
