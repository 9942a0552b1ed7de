"""FramePack 13B: image to video, in sections of 33 frames, 91 frames in all.

    python examples/families/hunyuanvideoframepack.py

A section has few tokens (14,400 at 640x640), so little is to be gained. We know of no published figure for sparse
attention with this model; `vidsparse estimate framepack` predicts one.
"""

from __future__ import annotations

import torch
from diffusers import HunyuanVideoFramepackPipeline, HunyuanVideoFramepackTransformer3DModel
from diffusers.utils import export_to_video, load_image
from transformers import SiglipImageProcessor, SiglipVisionModel

import vidsparse

dtype, images = torch.bfloat16, "lllyasviel/flux_redux_bfl"
pipe = HunyuanVideoFramepackPipeline.from_pretrained(
    "hunyuanvideo-community/HunyuanVideo",
    transformer=HunyuanVideoFramepackTransformer3DModel.from_pretrained(
        "lllyasviel/FramePackI2V_HY", torch_dtype=dtype
    ),
    feature_extractor=SiglipImageProcessor.from_pretrained(images, subfolder="feature_extractor"),
    image_encoder=SiglipVisionModel.from_pretrained(images, subfolder="image_encoder", torch_dtype=dtype),
    torch_dtype=dtype,
)
pipe.enable_model_cpu_offload()  # only what computes is on the GPU; with memory to spare: pipe.to("cuda")
with vidsparse.sparsify(pipe) as run:  # the preset "default", see `vidsparse presets`
    video = pipe(load_image("fox.png"), "a fox in the snow", num_frames=91).frames[0]
export_to_video(video, "fox.mp4", fps=30)
print(run.report())
