"""`vidsparse finetune --dry-run`: what a training will do, from settings alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vidsparse.cli.messages import counted
from vidsparse.cli.numbers import bytes_text, duration_text, flops_text, sides_text

if TYPE_CHECKING:
    import torch

    from vidsparse.finetune import Clip, Settings
    from vidsparse.finetune.memory.plan import Plan
    from vidsparse.generation.models import Model

DRY_RUN_HELP = "Show what would be trained, with memory and time; load no weights and write nothing."


def print_finetuning(
    model: Model, settings: Settings, clips: Sequence[Clip], dtype: torch.dtype, gpu: str | None
) -> None:
    """Print the plan of a training.

    Args:
        model: that is trained. settings: of the training.
        clips: to train on.
        dtype: that weights are stored in.
        gpu: name of the GPU that a time is given for; None: there is none.

    Raises: see `plan_training`.
    """
    from rich.console import Console
    from rich.table import Table

    from vidsparse.finetune.memory.plan import plan_training
    from vidsparse.finetune.process.accelerator import processes as launched, shards_base
    from vidsparse.finetune.process.zero import zero_of

    # In one process, the plan is for as few as share a clip.
    processes = launched() if launched() > 1 else settings.context_parallel
    divided = shards_base() and processes > 1
    zero = zero_of() if processes > 1 else None
    plan = plan_training(model, settings, clips, dtype, processes, divided, zero)
    table = Table.grid(padding=(0, 2))
    rows = _rows(model, settings, plan, processes, divided, gpu)
    if zero is not None:
        rows.append(("DeepSpeed", f"{zero.divides} of the LoRA divided among the processes"))
    for name, text in rows:
        table.add_row(f"[bold]{name}", text.replace("[", r"\["))
    Console(highlight=False).print(table)
    print("nothing was loaded: leave out --dry-run to train")


def _rows(
    model: Model, settings: Settings, plan: Plan, processes: int, divided: bool, gpu: str | None
) -> list[tuple[str, str]]:
    rows = [
        ("model", f"{model.name}, {settings.transformer}"),
        ("attention", repr(settings.pattern)),
    ]
    for size, one in plan.sizes.items():
        tokens = f"{sides_text(one.grid.view)} = {one.grid.tokens:,} tokens"
        rows.append(("clips", f"{plan.clips[size]:,} of {size.frames} frames, {size.width}x{size.height}: {tokens}"))
    share = f"{counted(plan.videos, 'video')} each" + (f", in {processes} processes" if processes > 1 else "")
    together = settings.context_parallel
    share += f", {together} to a clip" if together > 1 else ""
    rows.append(("steps", f"{plan.steps:,} of {share}: {plan.epochs:.3g} epochs"))
    largest = plan.largest
    away = f"; {bytes_text(away)} in the CPU's memory" if (away := largest.offloaded + largest.resting) else ""
    rows += [
        (
            "memory",
            f"{bytes_text(largest.memory)} in each process: {bytes_text(largest.weights)} of weights, "
            f"{bytes_text(largest.lora)} of LoRA and gradient, {bytes_text(largest.states)} of optimizer and average, "
            f"{bytes_text(largest.activations)} of activations{away}",
        ),
        ("", "text encoder and VAE are not counted, nor what the GPU's own libraries take"),
        ("frozen weights", _base(settings, divided)),
        ("density", f"{largest.density:.2f} of dense attention, on average over layers and noise levels"),
        ("a step", f"{flops_text(plan.flops * settings.batch)} in each process{_time(plan, settings, gpu)}"),
    ]
    return rows


def _base(settings: Settings, divided: bool) -> str:
    """How the weights rest, and whether blocks are computed again."""
    kind = "as they are stored" if settings.base == "none" else settings.base
    places = "in the CPU's memory, but for two blocks" if settings.offload_base else "on the device"
    places = "divided among the processes, but for two blocks and those outside of blocks" if divided else places
    again = "with" if settings.gradient_checkpointing else "without"
    return f"{kind}, {places}; {again} gradient checkpointing"


def _time(plan: Plan, settings: Settings, gpu: str | None) -> str:
    """Seconds of a step and of the training on a known GPU; a prediction that no GPU has confirmed."""
    from vidsparse.estimation.gpus import GPUS, UTILIZATION

    known = [one for one in GPUS if gpu is not None and one.name.lower() in gpu.lower()]
    if not known:
        return "; no time is known for this device"
    seconds = plan.flops * settings.batch / (known[0].teraflops * 1e12 * UTILIZATION)
    return (
        f"; at {UTILIZATION:.0%} of the peak of {known[0].name} {seconds:.3g} seconds, "
        f"{duration_text(seconds * plan.steps)} for all"
    )
