"""Names and help texts of options that several commands share."""

from __future__ import annotations

from vidsparse.generation.dtypes import dtype_name
from vidsparse.generation.models import SHIPPING

ATTENTION, VIDEO, MACHINE, MANY = "Attention", "Video", "Machine", "Many prompts"
OWN = "that of the model"
MODEL_HELP = f"{SHIPPING}, the folder of a diffusers pipeline, or a Hub id."
# Our name of an option, and that of diffusers.
FRAMES, STEPS = ("--frames", "--num-frames"), ("--steps", "--num-inference-steps")
GUIDANCE = "--guidance", "--guidance-scale"
DENSE_STEPS_HELP = "one in eight"
PRESET_HELP = "Pattern, schedule and correction by name, see `vidsparse presets`; what else is given changes them."
PROFILE_HELP = "A pattern that `vidsparse tune` found: a file, or a Hub id. Windows are scaled to other sizes."
BUDGET_HELP = (
    "The most that all steps cost, as a share of dense ones: steps are skipped to keep it. Unless given, the first two "
    "steps and the last are dense."
)
TEMPORAL_BIAS_HELP = (
    "For videos longer than those of training: frames within WIDTH latent frames weigh up to exp(STRENGTH) times more, "
    "while the noise level is above a half."
)
SPARSE_COST_HELP = "With --budget: what a sparse step costs, as a share of a dense one."
LORA_HELP = (
    "'shapes-long', a file, a folder or a Hub id; again for more, which add up. LORA:0.8 gives a strength, "
    "LORA@transformer_2 the expert, LORA:0.8@transformer_2 both. Pattern, schedule and frames of the first that says "
    "them are used where none are given."
)
POSITIONS_HELP = "In videos longer than those the model was trained on: plain, riflex or yarn."
DTYPE_HELP = "float32, bfloat16 or float16; also fp32, bf16, fp16."
IMAGE_HELP = "A file: the first frame of the video."
LAST_IMAGE_HELP = "A file: the last frame of the video."
VIDEO_HELP = "A file: the video that is changed, or continued, whichever the pipeline does."
STRENGTH_HELP = "How much of --video changes: the share of the steps that runs, counted from the last step."
SCALE_HELP = "Enlarge the video: each pixel is drawn N by N."
SCALE_DEFAULT = "4 for small videos, else 1"
SAMPLER_HELP = "sde draws fresh noise in every step, which helps long videos; own is the model's."


def read_dtype(name: str | None) -> str | None:
    """PyTorch's name of the dtype that an option names. Raises: see `dtype_name`."""
    return None if name is None else dtype_name(name)
