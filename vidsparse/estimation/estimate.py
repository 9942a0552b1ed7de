"""Predicts what patterns gain a model: a bound from floating-point operations, memory, and seconds of a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from vidsparse.estimation.gpus import UTILIZATION, Gpu, find_gpu
from vidsparse.estimation.known import known_model
from vidsparse.estimation.published import KnownModel
from vidsparse.estimation.work import Work, attention_bytes, work
from vidsparse.generation.dtypes import dtype_name
from vidsparse.generation.forecast import Forecast, forecast_of
from vidsparse.generation.frames import Geometry, geometry_of
from vidsparse.generation.transformers import class_named, defaults, without_weights
from vidsparse.patterns import Dense, Pattern, Radial
from vidsparse.presets import Preset, choose, preset
from vidsparse.runtime.registry import adapter_of

DENSITIES = 0.2, 0.4


@dataclass(frozen=True)
class Setting:
    """What one pattern does to a video.

    Attributes:
        name: of the setting. forecast: its maps and steps.
        flops: of the denoising, all steps and calls, with kept tiles computed as a whole.
        attention, denoising: how many times faster than dense each can become: bounds by Amdahl's law.
        seconds: of the denoising on the GPU; None without one.
    """

    name: str
    pattern: Pattern
    forecast: Forecast = field(repr=False)
    flops: float
    attention: float
    denoising: float
    seconds: float | None

    def to_dict(self) -> dict[str, Any]:
        """The setting as plain data."""
        return {
            "name": self.name,
            "pattern": repr(self.pattern),
            "density": self.forecast.density,
            "token_density": self.forecast.token_density,
            "sparse_steps": self.forecast.sparse_steps,
            "attention_flops_saved": self.forecast.saved,
            "flops": self.flops,
            "attention_bound": self.attention,
            "denoising_bound": self.denoising,
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class Estimate:
    """A prediction from floating-point operations; no GPU has confirmed one.

    Attributes:
        model: what is known of it. geometry: its tokens and heads. parameters: of one transformer.
        frames, height, width, steps: of the video, as asked for.
        work: of one call of the transformer, dense.
        weights: bytes of all transformers. activations: bytes of query, key, value and output of one layer of
            attention, for one call; others are not counted.
        settings: dense first.
        gpu: for which seconds are given. utilization: share of its peak that is assumed.
    """

    model: KnownModel
    geometry: Geometry = field(repr=False)
    parameters: int
    frames: int
    height: int
    width: int
    steps: int
    dtype: str
    work: Work
    weights: int
    activations: int
    settings: tuple[Setting, ...]
    gpu: Gpu | None = None
    utilization: float = UTILIZATION

    def to_dict(self) -> dict[str, Any]:
        """The prediction as plain data."""
        dense = self.settings[0].forecast
        return {
            "model": self.model.name,
            "source": self.model.source,
            "parameters": self.parameters,
            **{name: getattr(self, name) for name in ("frames", "height", "width", "steps", "dtype")},
            "calls": self.model.calls,
            "grid": list(dense.grid.view),
            "tokens": dense.grid.tokens,
            "text": self.model.text,
            "layers": dense.layers,
            "heads": self.geometry.heads,
            "head_dim": self.geometry.head_dim,
            "flops_of_a_call": {**asdict(self.work), "total": self.work.total, "share": self.work.share},
            "bytes": {"weights": self.weights, "attention": self.activations},
            "gpu": asdict(self.gpu) | {"utilization": self.utilization} if self.gpu else None,
            "settings": [one.to_dict() for one in self.settings],
        }


def estimate(
    model: str,
    patterns: Mapping[str, Pattern] | None = None,
    *,
    frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    steps: int | None = None,
    dtype: str = "bfloat16",
    gpu: str | None = None,
    utilization: float = UTILIZATION,
) -> Estimate:
    """Predict what sparse attention gains a model. Nothing is loaded and nothing is downloaded.

    The speed-ups are bounds: choosing tiles, corrections, norms and everything beside the transformer are not counted.

    Args:
        model: a name or Hub id that `vidsparse estimate` lists, or the folder of a diffusers pipeline.
        patterns: name -> pattern, in its schedule; by default the model's preset, and `Radial` at 0.2 and 0.4.
        frames, height, width, steps: of the video; by default what is published for the model.
        dtype: of weights and activations, as `dtype_name` knows it.
        gpu: a name such as "H100", for seconds. utilization: the share of its peak that is reached.

    Raises:
        ValueError: an unknown model, dtype or GPU; a size, steps or utilization that is not possible or not known; a
            pattern for a model with other layers or heads.
        NotImplementedError: no adapter serves the model.
        OSError: the settings in a folder cannot be read.
    """
    if not 0 < utilization <= 1:
        raise ValueError(f"utilization={utilization} must be above 0 and at most 1")
    chip = None if gpu is None else find_gpu(gpu)
    dtype = dtype_name(dtype)
    known = known_model(model)
    asked = {"frames": frames, "height": height, "width": width, "steps": steps}
    own = dict(zip(asked, (*known.video, known.steps), strict=True))
    sizes = {name: own[name] if value is None else value for name, value in asked.items()}
    if missing := [name for name, value in sizes.items() if not value and asked[name] is None]:
        raise ValueError(f"the files of {model} do not say its {', '.join(missing)}; give them")
    if wrong := [f"{name}={value}" for name, value in sizes.items() if value < 1]:
        raise ValueError(f"{', '.join(wrong)} must be at least 1")
    cls, config = class_named(known.transformer), dict(known.config)
    geometry = geometry_of(cls, config, known.vae_stride)
    size = sizes["frames"], sizes["height"], sizes["width"]
    geometry.check(*size)
    tokens, transformer = geometry.grid(*size).tokens, without_weights(cls, config)
    layers = len(adapter_of(cls).self_attentions(transformer))
    parameters = sum(weight.numel() for weight in transformer.parameters())
    bytes_each = getattr(torch, dtype).itemsize
    if patterns is None:
        patterns = usual(model_preset(known))
    for pattern in patterns.values():
        pattern.check_model(layers, geometry.heads)
    of_call = work(cls, config, geometry, tokens, known.text)
    settings = []
    for name, pattern in {"dense": Dense(), **patterns}.items():
        forecast = forecast_of(geometry, layers, pattern, size, sizes["steps"])
        flops, calls = remaining(forecast, of_call, known.calls)
        seconds = None if chip is None else chip.seconds(flops, calls * parameters * bytes_each, utilization)
        gained = known.calls * sizes["steps"] * of_call.total / flops
        settings.append(Setting(name, pattern, forecast, flops, forecast.bound, gained, seconds))
    return Estimate(
        *(known, geometry, parameters, *size, sizes["steps"], dtype, of_call),
        weights=known.experts * parameters * bytes_each,
        activations=attention_bytes(tokens + known.text, geometry.heads * geometry.head_dim, bytes_each),
        settings=tuple(settings),
        gpu=chip,
        utilization=utilization,
    )


def model_preset(known: KnownModel) -> Preset:
    """The preset of a model."""
    cls = class_named(known.transformer)
    return choose(cls, {**defaults(cls), **known.config}, known.experts > 1)


def usual(chosen: Preset) -> dict[str, Pattern]:
    """A preset, and `Radial` at two densities in the schedule of the preset for all models."""
    schedule: Any = preset("default").pattern
    radial = {f"Radial {density:g}": replace(schedule, pattern=Radial(density=density)) for density in DENSITIES}
    return {chosen.name: chosen.pattern, **radial}


def remaining(forecast: Forecast, of_call: Work, calls: int) -> tuple[float, int]:
    """The operations that a pattern leaves of all steps, and the calls that it does not skip; `calls` in each step."""
    steps = len(forecast.sparse)
    computed = calls * (steps - len(forecast.skipped))
    attention = forecast.share(forecast.computed) * calls * steps * of_call.attention
    return attention + computed * (of_call.total - of_call.attention), computed
