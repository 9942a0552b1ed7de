"""Hears what a pipeline tells its transformer in `cache_context`: the name of a call, its step and its noise."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

METHOD = "cache_context"  # of diffusers' CacheMixin


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


class Ear:
    """Takes the place of `cache_context` on one transformer: notes what it is told, and hands it on.

    It is an attribute of the instance. A hook of diffusers would replace `forward`: a copy of the transformer would
    then call the original's, and `torch.compile` would trace it.

    Attributes:
        told: what was said of the present call; an empty `Told` outside of a context.
    """

    def __init__(self, transformer: torch.nn.Module):
        self._transformer = weakref.ref(transformer)
        self._beneath: Any = vars(transformer).get(METHOD)  # the ear of an earlier run, or None: the class's method
        self._used = True
        self.told = Told()
        vars(transformer)[METHOD] = self

    @staticmethod
    def fits(transformer: torch.nn.Module) -> bool:
        """Whether pipelines can tell a transformer anything."""
        return hasattr(type(transformer), METHOD)

    @contextmanager
    def __call__(self, name: Any, **context: Any) -> Iterator[None]:
        transformer = self._transformer()
        if transformer is None:
            raise RuntimeError("the transformer of this cache_context is gone; call it on a transformer that exists")
        method: Callable[..., Any] = self._beneath or getattr(type(transformer), METHOD).__get__(transformer)
        with method(name, **context):
            before, self.told = self.told, Told.of(name, context)
            try:
                yield
            finally:
                self.told = before

    def remove(self) -> None:
        """Put back what was there before. Safe to call twice, and in any order with the ears of other runs."""
        self._used = False
        transformer = self._transformer()
        while transformer is not None and isinstance(top := vars(transformer).get(METHOD), Ear) and not top._used:
            if top._beneath is None:
                del vars(transformer)[METHOD]
            else:
                vars(transformer)[METHOD] = top._beneath

    def __deepcopy__(self, memo: dict[int, Any]) -> Ear:
        """A copy of the transformer has its own ear."""
        copied = memo[id(self)] = object.__new__(Ear)
        transformer = self._transformer()
        target = memo.get(id(transformer), transformer)
        copied._transformer = self._transformer if target is None else weakref.ref(target)
        copied._beneath, copied._used, copied.told = copy.deepcopy(self._beneath, memo), self._used, self.told
        return copied
