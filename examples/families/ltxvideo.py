"""LTX-Video: text to video, 161 frames of 704x512.

    python examples/families/ltxvideo.py

7,392 tokens are few: attention is a third of the work, so little is to be gained. We know of no published figure for
sparse attention with this model; `vidsparse estimate ltxvideo` predicts one.
"""

from __future__ import annotations

import torch
from diffusers import LTXPipeline
from diffusers.utils import export_to_video

import vidsparse

pipe = LTXPipeline.from_pretrained("Lightricks/LTX-Video", torch_dtype=torch.bfloat16)
pipe.to("cuda")
with vidsparse.sparsify(pipe) as run:  # the preset "default", see `vidsparse presets`
    video = pipe(prompt="a fox in the snow", num_frames=161).frames[0]
export_to_video(video, "fox.mp4", fps=25)
print(run.report())
