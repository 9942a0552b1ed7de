"""LTX-2 19B: text to video with sound, 121 frames of 768x512.

    python examples/families/ltx2video.py

6,144 tokens are few for so many weights: attention among them is 14 % of the work, so little is to be gained. We know
of no published figure for sparse attention with this model; `vidsparse estimate ltx2video` predicts one.
"""

from __future__ import annotations

import torch
from diffusers import LTX2Pipeline
from diffusers.utils import encode_video

import vidsparse

pipe = LTX2Pipeline.from_pretrained("Lightricks/LTX-2", torch_dtype=torch.bfloat16)
pipe.enable_model_cpu_offload()  # only what computes is on the GPU; with memory to spare: pipe.to("cuda")
with vidsparse.sparsify(pipe) as run:  # the preset "default", see `vidsparse presets`
    video, sound = pipe("a fox in the snow", num_frames=121, output_type="np", return_dict=False)
rate = pipe.vocoder.config.output_sampling_rate
encode_video(video[0], fps=24, audio=sound[0].float().cpu(), audio_sample_rate=rate, output_path="fox.mp4")
print(run.report())
