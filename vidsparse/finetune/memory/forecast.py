"""What a training step will take, before anything is loaded: it runs on tensors that have a size and no content."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from vidsparse.estimation.work import work
from vidsparse.finetune.data.clips import Bucket
from vidsparse.finetune.families import TrainingTask
from vidsparse.finetune.low_rank import lora_config
from vidsparse.finetune.memory.base import whole_blocks
from vidsparse.finetune.memory.contents import Contents
from vidsparse.finetune.memory.live import LiveBytes
from vidsparse.finetune.memory.offload import LEAST
from vidsparse.finetune.memory.sharding import held_of_divided
from vidsparse.finetune.memory.stand_in import let_rest, resting_layers
from vidsparse.finetune.memory.swap import swapped
from vidsparse.finetune.memory.wrapped import bytes_of
from vidsparse.finetune.noise import share_of, sparse_levels
from vidsparse.finetune.objective import loss_of
from vidsparse.finetune.optim.divided import held_of_learned
from vidsparse.finetune.process.zero import Zero
from vidsparse.finetune.settings import Settings
from vidsparse.generation.forecast import forecast_of
from vidsparse.generation.frames import geometry_of
from vidsparse.generation.transformers import defaults, without_weights
from vidsparse.grid import VideoGrid
from vidsparse.patterns import Pattern, StepSchedule

# Bytes that an optimizer keeps for each number of the LoRA.
STATES = {"adamw": 8, "adamw-8bit": 2, "prodigy": 16, "muon": 4}
# Operations of a backward pass by those of its forward pass: weights that are frozen have no gradient, and attention
# computes its scores again and four gradients from them.
LINEAR, ATTENTION = 1.0, 2.5
# Float32 tensors of a process's tokens that an exchange makes: queries, keys and values side by side, in the order of
# the heads, as they are sent and as they arrive; fitted to a real step.
EXCHANGED = 10


@dataclass(frozen=True)
class StepForecast:
    """What one pass of a training takes: one video, forward and backward.

    Attributes:
        grid: of the video's tokens.
        weights: bytes of the transformer; where FSDP divides them, see `held_of_divided`.
        lora: of the LoRA and its gradient. states: of the optimizer and the running average.
        resting: bytes of the weights that rest in the CPU's memory, and are not among `weights`.
        activations: the most bytes of all other tensors at once, with dense attention; also weights that are there
            while a layer runs. Processes that share a clip divide all but these, and exchange tokens for heads besides.
        offloaded: bytes of these that wait in the CPU's memory.
        flops: forward, recomputed and backward, by the density of attention.
        density: mean density of attention over layers and noise levels, with kept tiles as a whole.
    """

    grid: VideoGrid
    weights: int
    resting: int
    lora: int
    states: int
    activations: int
    offloaded: int
    flops: float
    density: float

    @property
    def memory(self) -> int:
        """Bytes on the device of the training, all together."""
        return self.weights + self.lora + self.states + self.activations


def forecast_step(
    cls: type[Any],
    config: Mapping[str, Any],
    task: TrainingTask,
    settings: Settings,
    bucket: Bucket,
    *,
    pattern: Pattern,
    shift: float,
    bounds: tuple[float, float],
    vae_stride: tuple[int, int],
    words: int,
    dtype: torch.dtype,
    divided: int = 1,
    zero: Zero | None = None,
    processes: int = 1,
) -> StepForecast:
    """Predict one pass, of each process that has a part in it.

    Args:
        cls, config: class and settings of the transformer.
        task: of its family.
        settings: of the training.
        bucket: size of the video.
        pattern: of the training, by noise level.
        shift, bounds: of the noise levels.
        vae_stride: of the VAE in time and space.
        words: of the text.
        dtype: of the weights.
        divided: processes among which FSDP divides the frozen weights; 1: each has them whole.
        zero: what DeepSpeed divides among `processes` of what belongs to the LoRA, or None.

    Raises:
        ValueError: a size that the model does not take.
    """
    known = geometry_of(cls, dict(config), vae_stride)
    size = task.called_with(bucket.frames), bucket.height, bucket.width
    grid = known.grid(*size)
    module = without_weights(cls, dict(config)).to(dtype)
    layers = len(known.adapter.self_attentions(module))
    module.requires_grad_(False)
    layers_at_rest = resting_layers(settings.base, without_weights(cls, dict(config)).to(dtype))
    at_rest = [module.get_submodule(name) for name in layers_at_rest]
    from peft import LoraConfig

    module.add_adapter(lora_config(settings, LoraConfig))
    view = (known.frames(bucket.frames)[1], bucket.height // vae_stride[1], bucket.width // vae_stride[1])
    full = {**defaults(cls), **config}
    live, kept, resting = _run(module, at_rest, task, settings, lambda: task.blank(full, view, words), dtype)
    frozen = [weight for weight in module.parameters() if not weight.requires_grad]
    weights = sum(bytes_of(tensor) for tensor in (*frozen, *module.buffers())) - resting
    if divided > 1:
        weights = held_of_divided(module, divided)
    sizes = [weight.numel() for weight in module.parameters() if weight.requires_grad]
    lora, part = sum(sizes), sum(sizes) if zero is None else -(-sum(sizes) // processes)
    offloaded = max(0, kept - 2 * grid.tokens * known.heads * known.head_dim * _itemsize(settings, dtype))
    offloaded = offloaded if settings.offload_activations else 0
    of_call = work(cls, dict(config), known, grid.tokens, words)
    again = 1.0 if settings.gradient_checkpointing else 0.0
    density = _density(pattern, known, layers, size, shift, bounds, settings)
    linear = of_call.projections + of_call.others
    flops = linear * (1 + again + LINEAR)
    flops += (of_call.attention * density + of_call.text) * (1 + again + ATTENTION)
    average, shares = 0 if settings.ema is None else 4, settings.context_parallel
    exchanged = 4 * EXCHANGED * grid.tokens * known.heads * known.head_dim if shares > 1 else 0
    return StepForecast(
        grid=grid,
        weights=weights,
        resting=resting,
        lora=8 * lora if zero is None else held_of_learned(sizes, processes, zero),
        states=STATES[settings.optimizer] * part + average * lora,
        activations=live + (exchanged - offloaded) // shares,
        offloaded=offloaded // shares,
        flops=flops / shares,
        density=density,
    )


def _run(
    module: Any,
    at_rest: list[torch.nn.Module],
    task: TrainingTask,
    settings: Settings,
    example: Any,
    dtype: torch.dtype,
) -> tuple[int, int, int]:
    """Run a pass on tensors without content.

    Args:
        at_rest: layers whose weights rest in fewer bits.

    Returns:
        The most bytes of a process beside weights and gradients, those of large tensors that the forward pass keeps in
        all processes of a group, and those of weights in the CPU's memory.
    """
    if settings.gradient_checkpointing:
        module.enable_gradient_checkpointing()
    module.train()
    live, kept = LiveBytes(settings.context_parallel), dict[int, int]()

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if bytes_of(tensor) >= LEAST and not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage()._cdata] = bytes_of(tensor)
        return tensor

    half = None if settings.half is None else torch.bfloat16  # fp16 takes as much
    cast = contextlib.nullcontext() if half is None else torch.autocast("cpu", half)
    with FakeTensorMode(allow_non_fake_inputs=True), Contents():
        _without_content(module)
        let_rest(settings.base, module, at_rest, half or dtype)
        weights = list(module.parameters())
        learned = [weight for weight in weights if weight.requires_grad]
        for weight in learned:
            weight.grad = torch.zeros_like(weight)
        with swapped(module, learned, torch.device("cpu"), settings.offload_base) as swap, live:
            there = (*weights, *module.buffers(), *(w.grad for w in learned if w.grad is not None))
            live.leave_out(there)
            with cast, whole_blocks(settings.base), saved_tensors_hooks(pack, lambda tensor: tensor):
                loss, _ = loss_of(module, example(), task, dtype=dtype if half is None else torch.float32)
            loss.backward()
    return live.peak, sum(kept.values()), 0 if swap is None else swap.resting


def _without_content(module: torch.nn.Module) -> None:
    """Replace weights on the meta device by fake ones of a CPU, which autocast and attention treat as real."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                dtype = torch.float32 if weight.requires_grad else weight.dtype
                new = torch.empty(weight.shape, dtype=dtype)
                part._parameters[name] = torch.nn.Parameter(new, requires_grad=weight.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
        for name, table in vars(part).items():
            if isinstance(table, torch.Tensor):  # of frequencies, which a few models keep so
                setattr(part, name, torch.empty(table.shape, dtype=table.dtype))


def _density(
    pattern: Pattern,
    known: Any,
    layers: int,
    size: tuple[int, int, int],
    shift: float,
    bounds: tuple[float, float],
    settings: Settings,
) -> float:
    """What attention computes, as a share of dense attention, on average over layers and noise levels."""
    low, high = (share_of(level, shift, bounds, settings.level_sampling) for level in sparse_levels(pattern))
    while isinstance(pattern, StepSchedule) and pattern.sigmas is not None:
        pattern = StepSchedule(pattern.pattern, dense_layers=pattern.dense_layers)
    found = forecast_of(known, layers, pattern, size, 1)
    return 1 - (high - low) * (1 - found.share(found.computed))


def _itemsize(settings: Settings, dtype: torch.dtype) -> int:
    return dtype.itemsize if settings.precision == "no" else 2
