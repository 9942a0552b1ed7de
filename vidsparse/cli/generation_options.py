"""The options that `generate` and `compare` share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from typer import Argument, Option

from vidsparse.cli.options import (
    ATTENTION,
    BUDGET_HELP,
    DENSE_STEPS_HELP,
    DTYPE_HELP,
    FRAMES,
    GUIDANCE,
    IMAGE_HELP,
    LAST_IMAGE_HELP,
    LORA_HELP,
    MACHINE,
    MODEL_HELP,
    OWN,
    POSITIONS_HELP,
    PRESET_HELP,
    PROFILE_HELP,
    SAMPLER_HELP,
    SCALE_DEFAULT,
    SCALE_HELP,
    SPARSE_COST_HELP,
    STEPS,
    STRENGTH_HELP,
    TEMPORAL_BIAS_HELP,
    VIDEO,
    VIDEO_HELP,
    read_dtype,
)
from vidsparse.cli.patterns import CORRECTION_HELP, DENSITY_HELP, PATTERN_HELP, SET_HELP
from vidsparse.generation.models import DEFAULT


@dataclass(frozen=True)
class GenerationOptions:
    """A prompt, a model, a pattern and how to sample. None: the value of the LoRA, else of the model."""

    prompt: Annotated[str, Argument(help="What the video shows.", show_default=False)]
    model: Annotated[str, Option(help=MODEL_HELP)] = DEFAULT

    lora: Annotated[list[str] | None, Option(help=LORA_HELP, rich_help_panel=ATTENTION, show_default="none")] = None
    preset: Annotated[str | None, Option(help=PRESET_HELP, rich_help_panel=ATTENTION, show_default=OWN)] = None
    profile: Annotated[str | None, Option(help=PROFILE_HELP, rich_help_panel=ATTENTION, show_default="none")] = None
    pattern: Annotated[
        str | None,
        Option(help=PATTERN_HELP, rich_help_panel=ATTENTION, show_default="of the preset"),
    ] = None
    density: Annotated[
        float | None, Option(help=DENSITY_HELP, rich_help_panel=ATTENTION, show_default="of the pattern")
    ] = None
    settings: Annotated[list[str] | None, Option("--set", help=SET_HELP, rich_help_panel=ATTENTION)] = None
    correction: Annotated[str | None, Option(help=CORRECTION_HELP, rich_help_panel=ATTENTION, show_default="none")] = (
        None
    )
    dense_steps: Annotated[
        int | None,
        Option(min=0, help="Dense steps at the start.", rich_help_panel=ATTENTION, show_default=DENSE_STEPS_HELP),
    ] = None
    dense_last_steps: Annotated[
        int | None, Option(min=0, help="Dense steps at the end.", rich_help_panel=ATTENTION, show_default="0")
    ] = None
    dense_layers: Annotated[
        str | None,
        Option(help="Layers that stay dense, such as 0,1 or -1.", rich_help_panel=ATTENTION, show_default="none"),
    ] = None
    budget: Annotated[
        float | None, Option(help=BUDGET_HELP, rich_help_panel=ATTENTION, show_default="no step is skipped")
    ] = None
    sparse_cost: Annotated[
        float | None, Option(help=SPARSE_COST_HELP, rich_help_panel=ATTENTION, show_default="0.7; 1 for dense")
    ] = None
    temporal_bias: Annotated[
        str | None,
        Option(
            metavar="STRENGTH[,WIDTH]", help=TEMPORAL_BIAS_HELP, rich_help_panel=ATTENTION, show_default="none; width 4"
        ),
    ] = None
    impl: Annotated[
        str, Option(help="auto, triton, cudnn, fa4, cpu, flex or reference.", rich_help_panel=ATTENTION)
    ] = "auto"

    negative_prompt: Annotated[
        str | None, Option(help="What the video should not show.", rich_help_panel=VIDEO, show_default=OWN)
    ] = None
    image: Annotated[str | None, Option(help=IMAGE_HELP, rich_help_panel=VIDEO, show_default="none")] = None
    last_image: Annotated[str | None, Option(help=LAST_IMAGE_HELP, rich_help_panel=VIDEO, show_default="none")] = None
    video: Annotated[str | None, Option(help=VIDEO_HELP, rich_help_panel=VIDEO, show_default="none")] = None
    strength: Annotated[
        float | None, Option(min=0, max=1, help=STRENGTH_HELP, rich_help_panel=VIDEO, show_default=OWN)
    ] = None
    frames: Annotated[
        int | None, Option(*FRAMES, min=1, help="Of the video.", rich_help_panel=VIDEO, show_default=OWN)
    ] = None
    height: Annotated[int | None, Option(min=1, help="In pixels.", rich_help_panel=VIDEO, show_default=OWN)] = None
    width: Annotated[int | None, Option(min=1, help="In pixels.", rich_help_panel=VIDEO, show_default=OWN)] = None
    steps: Annotated[
        int | None, Option(*STEPS, min=1, help="Denoising steps.", rich_help_panel=VIDEO, show_default=OWN)
    ] = None
    guidance: Annotated[
        float | None,
        Option(*GUIDANCE, help="Classifier-free guidance scale.", rich_help_panel=VIDEO, show_default=OWN),
    ] = None
    sampler: Annotated[str | None, Option(help=SAMPLER_HELP, rich_help_panel=VIDEO, show_default="own")] = None
    positions: Annotated[str | None, Option(help=POSITIONS_HELP, rich_help_panel=VIDEO, show_default="plain")] = None
    trained_frames: Annotated[
        int | None, Option(min=1, help="Frames that the model was trained on.", rich_help_panel=VIDEO, show_default=OWN)
    ] = None
    flow_shift: Annotated[
        float | None,
        Option(help="The higher, the more steps at high noise.", rich_help_panel=VIDEO, show_default=OWN),
    ] = None
    seed: Annotated[int, Option(min=0, max=2**63 - 1, help="Seed of the noise.", rich_help_panel=VIDEO)] = 0
    fps: Annotated[int | None, Option(min=1, help="Frames a second.", rich_help_panel=VIDEO, show_default=OWN)] = None
    scale: Annotated[int | None, Option(min=1, help=SCALE_HELP, rich_help_panel=VIDEO, show_default=SCALE_DEFAULT)] = (
        None
    )

    dtype: Annotated[
        str | None,
        Option(
            help=DTYPE_HELP,
            callback=read_dtype,
            rich_help_panel=MACHINE,
            show_default="float32 on a CPU, else bfloat16",
        ),
    ] = None
    device: Annotated[
        str | None, Option(help="Such as cpu or cuda:1.", rich_help_panel=MACHINE, show_default="the fastest there is")
    ] = None
    offload: Annotated[bool, Option("--offload", help="Keep on the GPU only what runs.", rich_help_panel=MACHINE)] = (
        False
    )
