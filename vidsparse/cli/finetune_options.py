"""The options of `vidsparse finetune`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from vidsparse.cli.attention import PATTERN, integers
from vidsparse.cli.clip_options import DATA, OF_MODEL, ClipOptions
from vidsparse.cli.options import DENSE_STEPS_HELP, MODEL_HELP, SAMPLER_HELP
from vidsparse.cli.patterns import CORRECTION_HELP, DENSITY_HELP, PATTERN_HELP, SET_HELP
from vidsparse.generation.dtypes import dtype_name
from vidsparse.generation.models import DEFAULT

if TYPE_CHECKING:
    from vidsparse import Pattern

ATTENTION, LEARNING, OUTPUT = "Attention", "Learning", "Output"
PRECISIONS = {"no": "no", "float32": "no", "bfloat16": "bf16", "float16": "fp16"}


def read_precision(name: str) -> str:
    """The precision that an option names, in the words of accelerate. Raises: see `dtype_name`."""
    return PRECISIONS.get(name) or PRECISIONS[dtype_name(name)]


@dataclass(frozen=True)
class Finetuning(ClipOptions):
    """What is trained, on what, how. Names that `vidsparse.finetune.Settings` has too go there as they are."""

    out: Annotated[
        Path, Option("--out", "-o", "--output-dir", help="Folder of the LoRA, its checkpoints, log and samples.")
    ]
    model: Annotated[
        str,
        Option(
            "--model",
            "--pretrained-model-name-or-path",
            help=MODEL_HELP,
        ),
    ] = DEFAULT
    from_image: Annotated[
        bool, Option("--from-image", help="Train image to video: each clip starts from its own first frame.")
    ] = False

    train_gate: Annotated[
        bool,
        Option(
            "--train-gate",
            help="Train the gate of learned-gate instead of a LoRA: the model stays as it is.",
        ),
    ] = False

    data: Annotated[str, Option(help="'shapes' draws videos; else a folder of videos.", rich_help_panel=DATA)] = (
        "shapes"
    )
    videos: Annotated[int, Option(min=1, help="How many to draw, by the seed.", rich_help_panel=DATA)] = 512
    cache: Annotated[
        Path | None, Option(help="Folder of encoded videos.", rich_help_panel=DATA, show_default="OUT/cache")
    ] = None

    validation_share: Annotated[
        float, Option(help="Part of the videos that is held out, to measure the loss.", rich_help_panel=DATA)
    ] = 0.0
    validation_data: Annotated[
        Path | None, Option(help="A folder of videos to measure the loss.", rich_help_panel=DATA, show_default="none")
    ] = None

    pattern: Annotated[str, Option(help=PATTERN_HELP, rich_help_panel=ATTENTION)] = PATTERN
    density: Annotated[
        float | None, Option(help=DENSITY_HELP, rich_help_panel=ATTENTION, show_default="of the pattern")
    ] = None
    settings: Annotated[list[str] | None, Option("--set", help=SET_HELP, rich_help_panel=ATTENTION)] = None
    correction: Annotated[str, Option(help=CORRECTION_HELP, rich_help_panel=ATTENTION)] = "none"
    dense_steps: Annotated[
        int | None,
        Option(
            min=0,
            help="Dense steps at the start of the generation that the LoRA is for.",
            rich_help_panel=ATTENTION,
            show_default=DENSE_STEPS_HELP,
        ),
    ] = None
    dense_last_steps: Annotated[int, Option(min=0, help="Dense steps at its end.", rich_help_panel=ATTENTION)] = 0
    dense_layers: Annotated[
        str, Option(help="Layers that stay dense, such as 0,1.", rich_help_panel=ATTENTION, show_default="none")
    ] = ""
    inference_steps: Annotated[
        int | None,
        Option(
            min=1,
            help="Denoising steps of the generation that the LoRA is for.",
            rich_help_panel=ATTENTION,
            show_default=OF_MODEL,
        ),
    ] = None
    sampler: Annotated[str | None, Option(help=SAMPLER_HELP, rich_help_panel=ATTENTION, show_default="own")] = None
    flow_shift: Annotated[
        float | None,
        Option(help="Of the noise levels, here and in a generation.", rich_help_panel=ATTENTION, show_default=OF_MODEL),
    ] = None
    positions: Annotated[str, Option(help="In longer videos: plain, riflex or yarn.", rich_help_panel=ATTENTION)] = (
        "plain"
    )
    trained_frames: Annotated[
        int | None,
        Option(min=1, help="Frames that the model knows.", rich_help_panel=ATTENTION, show_default=OF_MODEL),
    ] = None

    steps: Annotated[
        int,
        Option(
            "--steps",
            "--max-train-steps",
            help="Steps of the whole training, also of one that resumes.",
            rich_help_panel=LEARNING,
        ),
    ] = 1000
    batch: Annotated[
        int,
        Option(
            "--batch",
            "--gradient-accumulation-steps",
            help="Videos of a step in each process: passes one after another, whose gradients add up.",
            rich_help_panel=LEARNING,
        ),
    ] = 1
    optimizer: Annotated[str, Option(help="adamw, adamw-8bit, prodigy or muon.", rich_help_panel=LEARNING)] = "adamw"
    learning_rate: Annotated[
        float | None,
        Option(
            "--lr",
            "--learning-rate",
            help="Learning rate.",
            rich_help_panel=LEARNING,
            show_default="1e-4, of a gate 1e-3",
        ),
    ] = None
    lr_scheduler: Annotated[
        str,
        Option(
            help="constant, constant_with_warmup, linear, cosine, cosine_with_restarts or polynomial.",
            rich_help_panel=LEARNING,
        ),
    ] = "constant_with_warmup"
    warmup: Annotated[
        int, Option("--warmup", "--lr-warmup-steps", help="Steps in which it rises.", rich_help_panel=LEARNING)
    ] = 20
    lr_num_cycles: Annotated[int, Option(help="Of cosine_with_restarts.", rich_help_panel=LEARNING)] = 1
    lr_power: Annotated[float, Option(help="Of polynomial.", rich_help_panel=LEARNING)] = 1.0
    decay: Annotated[
        float, Option(help="Part of the steps, at the end, in which a constant rate falls.", rich_help_panel=LEARNING)
    ] = 0.0
    weight_decay: Annotated[
        float, Option("--weight-decay", "--adam-weight-decay", help="Of the optimizer.", rich_help_panel=LEARNING)
    ] = 0.0
    clip: Annotated[
        float, Option("--clip", "--max-grad-norm", help="Largest norm of the gradient.", rich_help_panel=LEARNING)
    ] = 1.0
    rank: Annotated[int, Option(help="Rank of the LoRA: rows of its first matrix.", rich_help_panel=LEARNING)] = 128
    alpha: Annotated[
        float | None,
        Option(
            "--alpha",
            "--lora-alpha",
            help="What the LoRA adds is multiplied by alpha / rank.",
            rich_help_panel=LEARNING,
            show_default="the rank",
        ),
    ] = None
    targets: Annotated[
        str | None,
        Option(
            "--targets",
            "--lora-layers",
            help="Layers that it changes: endings of names, a regular expression, or all-linear.",
            rich_help_panel=LEARNING,
            show_default="attention",
        ),
    ] = None
    exclude: Annotated[
        str,
        Option(
            help="Layers among the --targets that the LoRA does not change: endings of names, or a regular expression.",
            rich_help_panel=LEARNING,
            show_default="none",
        ),
    ] = ""
    dropout: Annotated[
        float,
        Option(
            "--dropout",
            "--lora-dropout",
            help="Share of the LoRA's inputs, from 0 to 1, that a step leaves out.",
            rich_help_panel=LEARNING,
        ),
    ] = 0.0
    rslora: Annotated[bool, Option("--rslora", help="Scale by alpha / sqrt(rank).", rich_help_panel=LEARNING)] = False
    dora: Annotated[bool, Option("--dora", help="Also learn the lengths of the rows.", rich_help_panel=LEARNING)] = (
        False
    )
    lora_plus_ratio: Annotated[
        float | None,
        Option(help="Learning rate of B by that of A (LoRA+).", rich_help_panel=LEARNING, show_default="1"),
    ] = None
    timestep_sampling: Annotated[
        str | None,
        Option(
            help="Density of noise levels: uniform, logit_normal or mode.",
            rich_help_panel=LEARNING,
            show_default="of the model's family",
        ),
    ] = None
    logit_mean: Annotated[float, Option(help="Of logit_normal.", rich_help_panel=LEARNING)] = 0.0
    logit_std: Annotated[float, Option(help="Of logit_normal.", rich_help_panel=LEARNING)] = 1.0
    mode_scale: Annotated[float, Option(help="Of mode.", rich_help_panel=LEARNING)] = 1.29
    loss_weighting: Annotated[
        str, Option(help="By noise level: none, sigma_sqrt, cosmap or min_snr.", rich_help_panel=LEARNING)
    ] = "none"
    snr_gamma: Annotated[float, Option(help="Of min_snr.", rich_help_panel=LEARNING)] = 5.0
    # Not --start: torchrun would take it for an abbreviation of one of its options.
    start: Annotated[
        str | None, Option("--start-from", help="A LoRA to begin with.", rich_help_panel=LEARNING, show_default="none")
    ] = None
    transformer: Annotated[
        str,
        Option(
            help="Which one learns: transformer, or in Wan 2.2 transformer_2, the expert for low noise.",
            rich_help_panel=LEARNING,
        ),
    ] = "transformer"
    ema: Annotated[
        float | None,
        Option(
            help="Save a running average of the weights, which keeps this share of itself in each step, such as 0.99.",
            rich_help_panel=LEARNING,
            show_default="the weights themselves",
        ),
    ] = None
    caption_dropout: Annotated[
        float | None,
        Option(
            help="Share of the videos, from 0 to 1, that a step trains with the empty caption, for guidance.",
            rich_help_panel=LEARNING,
            show_default="0.1, or as the model needs",
        ),
    ] = None
    precision: Annotated[
        str,
        Option(
            "--precision",
            "--mixed-precision",
            help="What a step computes in: bf16, fp16 (on a GPU), or no (what the model is stored in, float32).",
            callback=read_precision,
            rich_help_panel=LEARNING,
        ),
    ] = "bf16"
    base: Annotated[
        str,
        Option(help="How the frozen weights rest: none (as stored), int8, nf4 or float8.", rich_help_panel=LEARNING),
    ] = "none"
    gradient_checkpointing: Annotated[
        bool | None,
        Option(
            help="Compute each block again in the backward pass: less memory, more time.",
            rich_help_panel=LEARNING,
            show_default="on a GPU",
        ),
    ] = None
    offload_activations: Annotated[
        bool,
        Option(
            "--offload-activations",
            help="Move what --gradient-checkpointing keeps to the CPU's memory until it is needed.",
            rich_help_panel=LEARNING,
        ),
    ] = False
    offload_base: Annotated[
        bool,
        Option(
            "--offload-base",
            help="Keep the frozen weights in the CPU's memory, but for those of two blocks at a time.",
            rich_help_panel=LEARNING,
        ),
    ] = False
    context_parallel: Annotated[
        int,
        Option(
            "--context-parallel",
            "--ulysses",
            help="Processes that share each clip: GPUs for one long video. It divides the heads and the processes.",
            rich_help_panel=LEARNING,
        ),
    ] = 1
    seed: Annotated[
        int,
        Option(
            help="A whole number that decides the LoRA's initial weights, the order of the videos and their noise.",
            rich_help_panel=LEARNING,
        ),
    ] = 0
    cpu: Annotated[
        bool, Option("--cpu", help="Train on the CPU, also where there is a GPU.", rich_help_panel=LEARNING)
    ] = False

    log_every: Annotated[int, Option(help="Steps between two lines of the log.", rich_help_panel=OUTPUT)] = 10
    log_with: Annotated[
        str,
        Option(
            "--log-with",
            "--report-to",
            help="tensorboard, wandb, all or none; auto is TensorBoard where it is installed.",
            rich_help_panel=OUTPUT,
        ),
    ] = "auto"
    save_every: Annotated[
        int,
        Option("--save-every", "--checkpointing-steps", help="Steps between two checkpoints.", rich_help_panel=OUTPUT),
    ] = 100
    keep: Annotated[
        int,
        Option("--keep", "--checkpoints-total-limit", help="How many checkpoints stay.", rich_help_panel=OUTPUT),
    ] = 2
    validate_every: Annotated[
        int,
        Option(
            "--validate-every",
            "--validation-steps",
            help="Steps between two losses of held-out videos.",
            rich_help_panel=OUTPUT,
            show_default="at checkpoints",
        ),
    ] = 0
    samples: Annotated[bool, Option(help="Sample videos at the end.", rich_help_panel=OUTPUT)] = True
    sample_every: Annotated[
        int, Option(help="Also at step 0 and after every so many steps.", rich_help_panel=OUTPUT, show_default="not")
    ] = 0
    sample_steps: Annotated[
        int | None,
        Option(
            help="Denoising steps of those on the way.",
            rich_help_panel=OUTPUT,
            show_default="a third of --inference-steps",
        ),
    ] = None
    sample_prompts: Annotated[
        list[str] | None,
        Option(
            "--sample-prompt",
            "--validation-prompt",
            help="Again for more videos.",
            rich_help_panel=OUTPUT,
            show_default="a caption",
        ),
    ] = None

    def build_pattern(self, inference_steps: int) -> Pattern:
        """The pattern, in its schedule for generations of so many steps."""
        from vidsparse import StepSchedule
        from vidsparse.generation.dense_steps import default_dense_steps
        from vidsparse.patterns.names import build_pattern

        pattern = build_pattern(self.pattern, self.density, self.settings)
        layers = integers("--dense-layers", self.dense_layers)
        first = default_dense_steps(inference_steps) if self.dense_steps is None else self.dense_steps
        if self.pattern == "dense" or not (first or self.dense_last_steps or layers):
            return pattern
        return StepSchedule(pattern, first, self.dense_last_steps, layers)
