"""The list of checks that a model must pass before it is trusted with sparse attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from vidsparse.doctor import changes
from vidsparse.doctor.layout import ODD, every_layer_is_told, video_is_where_the_grid_says
from vidsparse.doctor.processors import (
    backend_reaches_dense_steps,
    dense_is_the_model,
    modules_run_in_their_order,
    restore_puts_back_the_very_objects,
)
from vidsparse.doctor.twin import Twin
from vidsparse.doctor.under_mask import KEEPS_ALL, Agrees


class Check(NamedTuple):
    """A property of a model, and its test: `run` returns the finding, or raises as `Agrees` does."""

    says: str
    run: Callable[[Twin], str]


CHECKS: dict[str, Check] = {
    "grid": Check("the tokens of the video stand where the adapter says", video_is_where_the_grid_says),
    "layers": Check("every layer in which video sees video is one that the adapter tells of", every_layer_is_told),
    "dense": Check("dense steps give what the model gives itself, bit for bit", dense_is_the_model),
    "keeps all": Check("a pattern that keeps all tiles gives the same, but for rounding", Agrees(KEEPS_ALL)),
    "sparse": Check("a sparse model is the model itself under the mask that the pattern means", Agrees()),
    "odd grid": Check("so it is on 3x5x7 tokens, where tiles are ragged", Agrees(view=ODD)),
    "batch": Check("so it is in a batch of two, whose texts differ in length where they may", Agrees(batch=2)),
    "bfloat16": Check("so it is in bfloat16", Agrees(dtype=torch.bfloat16)),
    "backward": Check("so are its gradients", Agrees(measure=Twin.gradients)),
    "checkpointing": Check(
        "so are they with gradient checkpointing",
        Agrees(measure=Twin.gradients, change=changes.gradient_checkpointing),
    ),
    "fused projections": Check("so it is after fuse_qkv_projections", Agrees(change=changes.fused_projections)),
    "LoRA": Check("so it is with a LoRA of peft", Agrees(change=changes.lora)),
    "float8 storage": Check("so it is with layerwise casting to float8", Agrees(change=changes.layerwise_casting)),
    "group offload": Check("so it is with diffusers' group offloading", Agrees(change=changes.group_offload)),
    "CPU offload": Check(
        "so it is with weights that accelerate brings when they are used", Agrees(change=changes.cpu_offload)
    ),
    "modules": Check("sparse calls run the modules of dense ones, in their order", modules_run_in_their_order),
    "restore": Check("restore puts back the very objects that stood there", restore_puts_back_the_very_objects),
    "backend": Check("the attention backend that a user sets is that of dense steps", backend_reaches_dense_steps),
}
