"""SkyReels-V2 14B: text to video, 97 frames of 960x544.

    python examples/families/skyreelsv2.py

We know of no published figure for sparse attention with this model; `vidsparse estimate skyreelsv2` predicts one.
"""

from __future__ import annotations

import torch
from diffusers import SkyReelsV2Pipeline
from diffusers.utils import export_to_video

import vidsparse

pipe = SkyReelsV2Pipeline.from_pretrained("Skywork/SkyReels-V2-T2V-14B-540P-Diffusers", torch_dtype=torch.bfloat16)
pipe.enable_model_cpu_offload()  # only what computes is on the GPU; with memory to spare: pipe.to("cuda")
with vidsparse.sparsify(pipe) as run:  # the preset "default", see `vidsparse presets`
    video = pipe("a fox in the snow", num_frames=97).frames[0]
export_to_video(video, "fox.mp4", fps=24)
print(run.report())
