"""The LoRA in a transformer: made by peft from the settings, in float32."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from vidsparse.finetune.settings import Settings
from vidsparse.finetune.start import begin_proxies, start_weights
from vidsparse.lora.files import LoraRecipe
from vidsparse.serialize import to_data

if TYPE_CHECKING:
    from vidsparse.corrections import Correction
    from vidsparse.patterns import Pattern


def add_lora(pipe: Any, settings: Settings) -> dict[str, torch.nn.Parameter]:
    """Freeze a pipeline's transformer and give it a LoRA, and proxies where the correction has some that learn.

    Returns:
        Their weights by their names in the transformer, float32.
    """
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig, set_peft_model_state_dict

    module = getattr(pipe, settings.transformer)
    module.requires_grad_(False)
    torch.manual_seed(settings.seed)
    start = None if settings.start is None else start_weights(module, settings, settings.start)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*get_apply_tensor_subclass")  # which only merging into int8 needs
        module.add_adapter(lora_config(settings, LoraConfig))
    if start is not None:
        set_peft_model_state_dict(module, start)
    if settings.learns_proxies:
        begin_proxies(module, settings)
    cast_training_params([module], dtype=torch.float32)
    return {name: weight for name, weight in module.named_parameters() if weight.requires_grad}


def lora_config(settings: Settings, kind: Callable[..., Any]) -> Any:
    """The configuration of a LoRA; `kind` is peft's `LoraConfig`."""

    def listed(names: tuple[str, ...] | str) -> list[str] | str | None:
        return (names if isinstance(names, str) else list(names)) or None

    return kind(
        r=settings.rank,
        lora_alpha=settings.rank if settings.alpha is None else settings.alpha,
        target_modules=listed(settings.layers),
        exclude_modules=listed(settings.exclude),
        lora_dropout=settings.dropout,
        use_rslora=settings.rslora,
        use_dora=settings.dora,
    )


def recipe_of(settings: Settings, frames: int, base: str, say: Callable[[str], None]) -> LoraRecipe:
    """What the LoRA's file says of the training.

    Args:
        settings: of the training.
        frames: (not latent) of its longest video.
        base: name of the base model.
        say: called with a message if a file cannot name the pattern or the correction.
    """
    return LoraRecipe(
        pattern=_nameable(settings.pattern, say),
        correction=_nameable(settings.correction, say),
        frames=frames,
        trained_frames=settings.trained_frames or frames,
        inference_steps=settings.inference_steps,
        positions=settings.positions,
        sampler=settings.sampler,
        flow_shift=settings.flow_shift,
        transformer=settings.transformer,
        base=base,
    )


def _nameable(value: Pattern | Correction | None, say: Callable[[str], None]) -> Any:
    """A pattern or correction for the LoRA's file; None, with a message, if a file cannot name it."""
    if value is None:
        return None
    try:
        to_data(value)
    except TypeError:
        say(f"the LoRA's file cannot name {value}; pass it to vidsparse.sparsify wherever the LoRA is used")
        return None
    return value
