"""`vidsparse finetune --train-gate`: the gate of `LearnedGate`, taught by the attention of a frozen model."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from vidsparse.cli.attention import integers
from vidsparse.cli.finetune_progress import training_progress
from vidsparse.cli.messages import live_console, note

if TYPE_CHECKING:
    from collections.abc import Callable

    from vidsparse import Pattern
    from vidsparse.cli.finetune_options import Finetuning
    from vidsparse.finetune import Bucket, Clip, Settings
    from vidsparse.generation.models import Model

NAME = "learned-gate"
RATE = 1e-3  # of SeerAttention
# Options that say something of a LoRA or of its training, and nothing of a gate.
OF_LORA = (
    *("rank", "alpha", "targets", "exclude", "dropout", "rslora", "dora", "lora_plus_ratio", "start", "ema"),
    *("correction", "positions", "loss_weighting", "base", "offload_activations", "offload_base"),
    *("gradient_checkpointing", "validation_share", "validation_data", "validate_every", "sample_every"),
    *("sample_steps", "sample_prompts", "samples", "log_with", "precision", "snr_gamma", "context_parallel"),
)
OTHERWISE = {"start": "start_from", "sample_prompts": "sample_prompt"}  # options that are not called as their field


def check_gate_options(request: Finetuning, dry_run: bool) -> None:
    """Refuse what only a LoRA takes. Raises ValueError, and NotImplementedError for DeepSpeed."""
    from vidsparse.finetune.process.zero import zero_of

    defaults = {f.name: f.default for f in fields(request)}
    given = [name for name in OF_LORA if getattr(request, name) != defaults[name]]
    if given:
        options = ", ".join(f"--{OTHERWISE.get(name, name).replace('_', '-')}" for name in given)
        raise ValueError(f"{options} mean nothing for --train-gate, which trains no LoRA; leave them out")
    if request.pattern not in (defaults["pattern"], NAME):
        raise ValueError(f"--train-gate trains {NAME}, not --pattern {request.pattern}; leave --pattern out")
    if zero_of() is not None:
        raise NotImplementedError(
            "--train-gate trains no LoRA, which is what DeepSpeed would divide; start it without DeepSpeed"
        )
    if dry_run:
        raise ValueError("--dry-run plans the training of a LoRA; leave out --train-gate, or --dry-run")


def gate_pattern(request: Finetuning) -> Pattern:
    """The gate that will be in `--out`, in its schedule. Its steps are dense only where --dense-steps says so."""
    from vidsparse import StepSchedule
    from vidsparse.patterns.names import build_pattern

    settings = [*(request.settings or []), f"gate={str(request.out)!r}"]
    pattern = build_pattern(NAME, request.density, settings)
    layers, first = integers("--dense-layers", request.dense_layers), request.dense_steps or 0
    if not (first or request.dense_last_steps or layers):
        return pattern
    return StepSchedule(pattern, first, request.dense_last_steps, layers)


def run_gate_training(
    request: Finetuning,
    model: Model,
    settings: Settings,
    buckets: list[Bucket],
    dtype: str,
    clips_of: Callable[[Callable[[str, int, int, float | None], None]], list[Clip]],
) -> None:
    """Load the model, train its gate, and say where it is.

    Args:
        model: to load, in `dtype`.
        clips_of: reads the clips, and reports progress.
    """
    from vidsparse.finetune.gate.job import check_gate, train_gate
    from vidsparse.generation.pipeline import load_pipeline

    with live_console().status(f"loading {request.model}"):
        pipe = load_pipeline(model, device="cpu", dtype=dtype)
    check_gate(pipe, settings, buckets)
    pipe.vae.float()  # in less precision its latents may not be finite
    with training_progress(True, request.log_every) as progress:
        clips = clips_of(progress)
        file = train_gate(
            pipe,
            clips,
            settings,
            request.out,
            base=request.model,
            cache=request.cache,
            cpu=request.cpu,
            say=note,
            progress=progress,
        )
    print(f"wrote the gate to {file}; --pattern {NAME} --set gate={request.out} uses it")
