"""Recommended settings by name: a pattern with its schedule for a model, and where its numbers come from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from vidsparse.corrections import Correction, PooledComplement
from vidsparse.patterns import Pattern, PerHead, PerLayer, Radial, RadialRaster, SlidingClip, StepSchedule, TopBlocks
from vidsparse.patterns.schedule import bare
from vidsparse.serialize import from_data
from vidsparse.shapes.shipped import FOLDER, PROFILE

RADIAL = "Radial Attention, arXiv 2506.19852, mit-han-lab/radial-attention at 72788d4"
RECTIFIED = "Rectified SpaAttn, arXiv 2511.19835, BienLuky/Rectified-SpaAttn at 4b0aa10"


@dataclass(frozen=True)
class Preset:
    """Settings for `sparsify`, for the models of one kind.

    Attributes:
        name: for `preset`, and for `--preset` of the command line.
        pattern, correction: for `sparsify`.
        source: who published the numbers; "" where nobody did.
        note: what is published, what was measured, and what is neither.
        models: Hub ids of models of this kind.
        transformer: class of diffusers; "" for all classes.
        config: values that tell these models from others of the class.
        experts: whether the pipeline has two transformers for high and low noise; None: either.
    """

    name: str
    pattern: Pattern
    source: str
    note: str
    correction: Correction | None = None
    models: tuple[str, ...] = ()
    transformer: str = ""
    config: Mapping[str, Any] = field(default_factory=dict, hash=False)
    experts: bool | None = None

    @property
    def summary(self) -> str:
        """The settings in words, such as "Radial(density=0.3); dense: 24 % of the steps, layer 0"."""
        pattern, clip = self.pattern, ""
        if isinstance(pattern, SlidingClip):
            clip = f"longer videos in clips of {pattern.frames} latent frames"
            pattern = pattern.pattern
        inner: Any = bare(pattern)
        given = [f"{f.name}={getattr(inner, f.name)}" for f in fields(inner) if getattr(inner, f.name) != f.default]
        tuned = isinstance(inner, (PerLayer, PerHead))
        parts = ["patterns chosen for each layer and head" if tuned else f"{type(inner).__name__}({', '.join(given)})"]
        if isinstance(pattern, StepSchedule):
            steps, levels = pattern.dense_steps, pattern.sigmas
            dense = [f"{steps:.3g} of the steps"] if steps or levels is None else []
            dense += [f"noise above {levels[1]:.3g}"] if levels else []
            dense += [f"layer {layer}" for layer in pattern.dense_layers]
            parts.append(f"dense: {', '.join(dense)}")
        if self.correction is not None:
            parts.append(f"correction: {type(self.correction).__name__}")
        return "; ".join([*parts, clip] if clip else parts)

    def is_for(self, transformer: str, config: Mapping[str, Any], experts: bool = False) -> bool:
        """Whether it is for a class of transformers with this configuration."""
        if self.experts not in (None, experts) or self.transformer not in ("", transformer):
            return False
        return all(name in config and config[name] == value for name, value in self.config.items())


def _wan(name: str, pattern: Pattern, source: str, note: str, **rest: Any) -> Preset:
    return Preset(name, pattern, source, note, transformer="WanTransformer3DModel", **rest)


def _profiled() -> Pattern:
    """The pattern of the profile that ships with `shapes`, which longer videos have in clips of its length."""
    data = json.loads((FOLDER / PROFILE).read_text(encoding="utf-8"))
    return SlidingClip(from_data(data["pattern"]), frames=data["grid"][0])


PRESETS = (
    _wan(
        "shapes",
        _profiled(),
        "",
        "Its profile, with which the expert for low noise was trained, at a density of 0.15. Measured on eight "
        "videos of held-out prompts: 28 to 33 dB against dense, denoising 2.3 times faster. Dense where the expert for "
        "high noise works, which has a quarter of the tokens.",
        config={"num_layers": 6, "num_attention_heads": 3},
        experts=True,
    ),
    _wan(
        "wan2.2-a14b",
        StepSchedule(RadialRaster(decay=0.8, block=64), dense_steps=0.275, dense_layers=(0,)),
        RADIAL,
        "Published for 77 frames of 1280x768: 11 of 40 steps and the first block dense.",
        models=("Wan-AI/Wan2.2-T2V-A14B-Diffusers", "Wan-AI/Wan2.2-I2V-A14B-Diffusers"),
        config={"num_layers": 40},
        experts=True,
    ),
    _wan(
        "wan2.1-14b",
        StepSchedule(RadialRaster(decay=0.2), dense_steps=0.24, dense_layers=(0,)),
        RADIAL,
        "Published for text to video, 69 frames of 1280x768: 12 of 50 steps and the first block dense.",
        models=(
            "Wan-AI/Wan2.1-T2V-14B-Diffusers",
            "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers",
            "Wan-AI/Wan2.1-I2V-14B-720P-Diffusers",
        ),
        config={"num_layers": 40},
        experts=False,
    ),
    _wan(
        "wan2.2-5b",
        StepSchedule(TopBlocks(density=0.25), dense_steps=0.1, dense_layers=(0, 1)),
        RECTIFIED,
        "Published for 121 frames of 1280x704: density, 5 of 50 steps and two layers dense. The choice of tiles and "
        "the correction are ours.",
        correction=PooledComplement(),
        models=("Wan-AI/Wan2.2-TI2V-5B-Diffusers",),
        config={"num_layers": 30, "in_channels": 48},
    ),
    _wan(
        "wan2.1-1.3b",
        StepSchedule(Radial(density=0.3), dense_steps=0.24, dense_layers=(0,)),
        "",
        "The schedule is that of wan2.1-14b. The density is a guess: at 480p the model has few tokens to spare.",
        models=("Wan-AI/Wan2.1-T2V-1.3B-Diffusers",),
        config={"num_layers": 30, "num_attention_heads": 12},
    ),
    Preset(
        "hunyuanvideo",
        StepSchedule(RadialRaster(decay=0.95, sink=False), dense_steps=0.24),
        RADIAL,
        "Published for 117 frames of 1280x768: 12 of 50 steps dense.",
        models=("hunyuanvideo-community/HunyuanVideo",),
        transformer="HunyuanVideoTransformer3DModel",
    ),
    Preset(
        "cogvideox1.5",
        StepSchedule(TopBlocks(density=0.25), dense_steps=0.1),
        RECTIFIED,
        "Published for 81 frames of 1280x768: density and 5 of 50 steps dense. The choice of tiles and the correction "
        "are ours.",
        correction=PooledComplement(),
        models=("zai-org/CogVideoX1.5-5B", "zai-org/CogVideoX1.5-5B-I2V"),
        transformer="CogVideoXTransformer3DModel",
        config={"patch_size_t": 2},
    ),
    Preset(
        "mochi",
        StepSchedule(Radial(density=0.3), dense_steps=0.24),
        RADIAL,
        "Published: 12 dense steps, taken here as 12 of 50. The density is a guess.",
        models=("genmo/mochi-1-preview",),
        transformer="MochiTransformer3DModel",
    ),
    Preset(
        "default",
        StepSchedule(Radial(density=0.3), dense_steps=0.24, dense_layers=(0,)),
        "",
        "For all other models. Published methods keep the first 20 to 25 % of the steps and a layer or two dense; the "
        "density is a guess.",
    ),
)
"""All presets; the first that fits a model is its own."""


def preset(name: str) -> Preset:
    """The preset of a name, such as "wan2.1-14b"; `PRESETS` has all of them.

        chosen = vidsparse.preset("wan2.1-14b")
        vidsparse.sparsify(pipe, chosen.pattern, correction=chosen.correction)

    Raises:
        ValueError: an unknown name; lists those that there are.
    """
    for known in PRESETS:
        if known.name == name:
            return known
    raise ValueError(f"preset {name!r} is unknown; choose one of {', '.join(p.name for p in PRESETS)}")


def choose(transformer: type, config: Mapping[str, Any], experts: bool = False) -> Preset:
    """The preset of a class of transformers with this configuration; `experts` as in `Preset`."""
    names = [cls.__name__ for cls in transformer.__mro__]
    return next(known for known in PRESETS if any(known.is_for(name, config, experts) for name in names))
