"""ConsisID: text and a face to video, 49 frames of 720x480. It needs OpenCV, insightface and facexlib.

    python examples/families/consisid.py

We know of no published figure for sparse attention with this model; `vidsparse estimate consisid` predicts one.
"""

from __future__ import annotations

import torch
from diffusers import ConsisIDPipeline
from diffusers.pipelines.consisid.consisid_utils import prepare_face_models, process_face_embeddings_infer
from diffusers.utils import export_to_video
from huggingface_hub import snapshot_download

import vidsparse

folder, dtype = snapshot_download("BestWishYsh/ConsisID-preview"), torch.bfloat16
helper, other_helper, clip, main, mean, std = prepare_face_models(folder, device="cuda", dtype=dtype)
face, tokens, image, points = process_face_embeddings_infer(
    helper, clip, other_helper, mean, std, main, "cuda", dtype, "face.png"
)
pipe = ConsisIDPipeline.from_pretrained(folder, torch_dtype=dtype).to("cuda")
with vidsparse.sparsify(pipe) as run:  # the preset "default", see `vidsparse presets`
    video = pipe(image, "a woman in the snow", id_cond=face, id_vit_hidden=tokens, kps_cond=points).frames[0]
export_to_video(video, "woman.mp4", fps=8)
print(run.report())
