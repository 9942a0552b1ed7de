"""Models whose experts cut a video into tokens of two sizes: coarse ones at high noise, fine ones at low noise."""

from __future__ import annotations

from math import prod

from vidsparse.generation.config_files import INDEX, read_config
from vidsparse.generation.models import source_of
from vidsparse.generation.transformers import Transformer, configured_transformers, defaults
from vidsparse.runtime.registry import adapter_of

SCHEDULER = "scheduler/scheduler_config.json"


def token_volume(transformer: Transformer) -> int:
    """Latents that a token of a transformer covers, from its class and settings."""
    cls, settings = transformer
    return prod(adapter_of(cls).patch({**defaults(cls), **settings}))


def finest(transformers: dict[str, Transformer]) -> Transformer:
    """The transformer with the most tokens, whose attention costs the most; of equal ones the first."""
    return min(transformers.values(), key=token_volume)


def noise_levels(model: str, steps: int, shift: float | None = None) -> tuple[float, ...]:
    """The noise level of each denoising step, from 1 on.

    Args:
        model: see `configured_transformers`, which also says what is raised. A class has no scheduler.
        steps: of the denoising.
        shift: of the flow; None: what the model's scheduler states, or none.
    """
    if shift is None:
        is_class = model in configured_transformers(model)
        scheduler = (None if is_class else read_config(source_of(model), SCHEDULER)) or {}
        shift = scheduler.get("flow_shift") or scheduler.get("shift") or 1.0
    linear = (1 - step / steps for step in range(steps))
    return tuple(shift * x / (1 + (shift - 1) * x) for x in linear)


def step_costs(model: str, steps: int, shift: float | None = None) -> tuple[float, ...]:
    """What dense attention costs in each denoising step, as a share of that of the transformer with the most tokens.

    Attention costs the square of the tokens. All steps cost 1, except where the expert of high noise has coarser
    tokens.

    Args: see `noise_levels`.
    """
    transformers = configured_transformers(model)
    volumes = [token_volume(transformer) for transformer in transformers.values()]
    if len(volumes) < 2 or volumes[0] <= volumes[1]:
        return (1.0,) * steps
    boundary = (read_config(source_of(model), INDEX) or {}).get("boundary_ratio") or 0.0
    high = (volumes[1] / volumes[0]) ** 2
    return tuple(high if level >= boundary else 1.0 for level in noise_levels(model, steps, shift))
