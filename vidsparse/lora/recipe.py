"""What a LoRA was trained with, as its file tells."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from vidsparse.corrections import Correction
from vidsparse.generation.positions import KINDS
from vidsparse.generation.scheduler import check_sampler
from vidsparse.patterns import Pattern
from vidsparse.runtime.pipeline import TRANSFORMERS
from vidsparse.serialize import from_data, to_data


@dataclass(frozen=True)
class LoraRecipe:
    """What a LoRA was trained with. None: not known.

    Attributes:
        pattern, correction: attention of the training, which is that of the generation it is for.
        frames: of the videos (not latent) that it was trained for.
        trained_frames: of the videos (not latent) that the base model was trained with.
        inference_steps: denoising steps of that generation.
        positions: "plain", "riflex" or "yarn", see `extend_positions`.
        sampler, flow_shift: of that generation, see `build_scheduler`.
        transformer: which transformer of the pipeline it changes; Wan 2.2 has a `transformer_2`, MiniMax-H3 a
            `transformer_ref`.
        base: id of the base model.
        version: of vidsparse; `save_lora` writes it.
    """

    pattern: Pattern | None = None
    correction: Correction | None = None
    frames: int | None = None
    trained_frames: int | None = None
    inference_steps: int | None = None
    positions: str | None = None
    sampler: str | None = None
    flow_shift: float | None = None
    transformer: str = "transformer"
    base: str | None = None
    version: str | None = None

    def __post_init__(self) -> None:
        for name, kind in (("pattern", Pattern), ("correction", Correction)):
            value = getattr(self, name)
            if value is not None and not isinstance(value, kind):
                raise TypeError(f"{name}={value!r} must be a {name} or None")
        for name in ("frames", "trained_frames", "inference_steps"):
            count = getattr(self, name)
            if count is not None and (not isinstance(count, int) or count < 1):
                raise ValueError(f"{name}={count!r} must be a whole number of at least 1, or None")
        if self.transformer not in TRANSFORMERS:
            raise ValueError(f"transformer={self.transformer!r} must be one of {', '.join(TRANSFORMERS)}")
        if self.positions not in (None, *KINDS):
            raise ValueError(f"positions={self.positions!r} must be one of {', '.join(KINDS)}, or None")
        if self.positions is not None and (self.frames is None or self.trained_frames is None):
            raise ValueError(f"positions={self.positions!r} depend on frames and trained_frames; give both")
        check_sampler(self.sampler, self.flow_shift)

    @classmethod
    def first_known(cls, recipes: Iterable[LoraRecipe]) -> LoraRecipe:
        """The first recipe of several that is known; an empty recipe otherwise."""
        return next((recipe for recipe in recipes if recipe.is_known), cls())

    @property
    def is_known(self) -> bool:
        """Whether anything is known of the training."""
        return self != LoraRecipe(transformer=self.transformer, base=self.base, version=self.version)

    @property
    def summary(self) -> str:
        """What is known, in a line."""
        before = "" if self.trained_frames is None else f" (the model on {self.trained_frames})"
        known = [
            None if self.frames is None else f"trained on {self.frames} frames{before}",
            None if self.pattern is None else f"with {_short(self.pattern)}",
            None if self.correction is None else f"and {_short(self.correction)}",
            None if self.positions is None else f"{self.positions} positions",
            None if self.sampler is None else f"for sampler {self.sampler}",
            None if self.flow_shift is None else f"for shift {self.flow_shift:g}",
        ]
        return ", ".join(text for text in known if text is not None) or "its file does not say how it was trained"

    def to_data(self) -> dict[str, Any]:
        """As plain data, for JSON.

        Raises:
            TypeError: a pattern or correction that is not vidsparse's own.
        """
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        return data | {name: to_data(data[name]) for name in ("pattern", "correction") if data[name] is not None}

    @classmethod
    def from_data(cls, data: object) -> LoraRecipe:
        """What `to_data` wrote; what is missing is not known.

        Raises:
            ValueError: an unknown field, class or value, as a later version of vidsparse may write it.
        """
        if not isinstance(data, dict):
            raise ValueError(f"got {data!r}, expected an object with the fields of LoraRecipe")
        names = [f.name for f in fields(cls)]
        if unknown := sorted(set(data) - set(names)):
            raise ValueError(f"a recipe has no {', '.join(unknown)}; its fields are {', '.join(names)}")
        return cls(**{name: from_data(value) if isinstance(value, dict) else value for name, value in data.items()})


def _short(value: Any) -> str:
    """A pattern or correction without the fields that have their defaults."""
    if not isinstance(value, (Pattern, Correction)):
        return repr(value)
    shown: Any = [(f, getattr(value, f.name)) for f in fields(type(value)) if f.repr]  # type: ignore[arg-type]
    return f"{type(value).__name__}({', '.join(f'{f.name}={_short(v)}' for f, v in shown if v != f.default)})"
