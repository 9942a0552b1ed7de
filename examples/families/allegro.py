"""Allegro: text to video, 88 frames of 1280x720.

    python examples/families/allegro.py

We know of no published figure for sparse attention with this model; `vidsparse estimate allegro` predicts one.
"""

from __future__ import annotations

import torch
from diffusers import AllegroPipeline
from diffusers.utils import export_to_video

import vidsparse

pipe = AllegroPipeline.from_pretrained("rhymes-ai/Allegro", torch_dtype=torch.bfloat16)
pipe.to("cuda")
with vidsparse.sparsify(pipe) as run:  # the preset "default", see `vidsparse presets`
    video = pipe("a fox in the snow", num_frames=88).frames[0]
export_to_video(video, "fox.mp4", fps=15)
print(run.report())
