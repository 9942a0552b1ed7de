"""Hears what a pipeline tells its transformer in `cache_context`: the name of a call, its step and its noise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from vidsparse.runtime.substitute import Substitute


@dataclass(frozen=True)
class Told:
    """What a pipeline says of the call that it makes.

    Attributes:
        name: of the call, such as "cond" or "uncond"; None where the pipeline says nothing.
        step, steps: index of the denoising step, and how many the run has; None where it does not say.
        sigma: noise level in [0, 1]; None where it does not say, or has another scale.
    """

    name: str | None = None
    step: int | None = None
    steps: int | None = None
    sigma: float | None = None

    @classmethod
    def of(cls, name: object, context: Mapping[str, Any]) -> Told:
        """Read the arguments of `cache_context`. Most pipelines pass the name alone."""
        step, steps, sigma = (context.get(key) for key in ("step_index", "num_inference_steps", "sigma"))
        level = -1.0 if sigma is None else float(sigma)
        return cls(
            None if name is None else str(name),
            None if step is None else int(step),
            None if steps is None else int(steps),
            level if 0 <= level <= 1 else None,
        )


class Ear(Substitute):
    """Takes the place of `cache_context` on one transformer: notes what it is told, and hands it on.

    Attributes:
        told: what was said of the present call; an empty `Told` outside of a context.
    """

    method = "cache_context"  # of diffusers' CacheMixin

    def __init__(self, transformer: torch.nn.Module):
        super().__init__(transformer)
        self.told = Told()

    @classmethod
    def fits(cls, transformer: torch.nn.Module) -> bool:
        """Whether pipelines can tell a transformer anything."""
        return hasattr(type(transformer), cls.method)

    @contextmanager
    def __call__(self, name: Any, **context: Any) -> Iterator[None]:
        with self.beneath()(name, **context):
            before, self.told = self.told, Told.of(name, context)
            try:
                yield
            finally:
                self.told = before
