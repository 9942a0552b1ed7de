"""A dense video, and what its transformers were called with on the way."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from vidsparse.block_map import Plan
from vidsparse.generation.sample import OnStep, sample
from vidsparse.grid import VideoGrid
from vidsparse.patterns import Context, Dense, Pattern
from vidsparse.runtime.pipeline import transformers_of


@dataclass(frozen=True)
class Captured:
    """One call of a transformer in a dense video, the first of its step (with guidance, the one with the prompt).

    Attributes:
        transformer: its name in the pipeline.
        step: index of the denoising step. sigma: its noise level.
        arguments: of the call, by name; tensors are on the CPU.
    """

    transformer: str
    step: int
    sigma: float
    arguments: Mapping[str, Any]

    @torch.no_grad()
    def repeat(self, transformer: torch.nn.Module, device: torch.device) -> torch.Tensor:
        """Call the transformer again; its first output."""
        arguments = {name: moved(value, device) for name, value in self.arguments.items()} | {"return_dict": False}
        out: torch.Tensor = transformer(**arguments)[0]
        return out


@dataclass(frozen=True)
class Reference:
    """A dense video in latents.

    Attributes:
        latents: float32, on the CPU.
        sigmas: noise level of each step.
        calls: those that were captured.
        seconds: of denoising. branches: how many calls of a transformer a step has.
    """

    latents: torch.Tensor
    sigmas: tuple[float, ...]
    calls: tuple[Captured, ...]
    seconds: float
    branches: int

    def plain(self) -> dict[str, Any]:
        """For `Store.kept`."""
        calls = [[c.transformer, c.step, c.sigma, dict(c.arguments)] for c in self.calls]
        return {**vars(self), "sigmas": list(self.sigmas), "calls": calls}

    @staticmethod
    def read(plain: Mapping[str, Any]) -> Reference:
        """What `plain` wrote."""
        calls = tuple(Captured(*call) for call in plain["calls"])
        return Reference(**{**plain, "sigmas": tuple(plain["sigmas"]), "calls": calls})


def capture(
    pipe: Any,
    arguments: Mapping[str, Any],
    wanted: Callable[[int, int], bool],
    *,
    seed: int = 0,
    on_step: OnStep = lambda done, steps: None,
) -> Reference:
    """Sample a dense video up to its latents, and keep the calls of some steps.

    Args:
        pipe, arguments, seed, on_step: see `vidsparse.generation.sample.sample`.
        wanted: whether the calls of a step are kept, by its index and the number of steps.

    Raises:
        ValueError: no step was wanted, as where the number of steps is unknown.
    """
    watch, calls = _Watch(), dict[tuple[str, int], Captured]()
    with ExitStack() as hooks:
        for name, transformer in transformers_of(pipe).items():
            hooks.enter_context(_kept_calls(transformer, name, watch, wanted, calls))
        done = sample(pipe, watch, {**arguments, "output_type": "latent"}, seed=seed, on_step=on_step)
    if not calls:
        raise ValueError(f"{type(pipe).__name__} does not tell its number of steps, so its phases cannot be tuned")
    sigmas = tuple(watch.sigmas[step] for step in sorted(watch.sigmas))
    latents = torch.as_tensor(done.frames).float().cpu()
    seconds = done.denoising_seconds or done.seconds
    return Reference(latents, sigmas, tuple(calls.values()), seconds, max(watch.branches.values()))


@dataclass(frozen=True)
class _Watch(Pattern):
    """Runs dense, and notes where the video is."""

    sigmas: dict[int, float] = field(default_factory=dict, compare=False)
    branches: Counter[int] = field(default_factory=Counter, compare=False)  # calls of each step
    present: list[Context] = field(default_factory=list, compare=False)

    def plan(self, grid: VideoGrid, context: Context | None = None) -> Plan:
        return Dense().plan(grid, context)

    def is_dense(self, context: Context) -> bool:
        self.sigmas[context.step] = context.sigma
        self.branches[context.step] += context.layer == 0
        self.present[:] = [context]
        return True


@contextmanager
def _kept_calls(
    transformer: torch.nn.Module,
    name: str,
    watch: _Watch,
    wanted: Callable[[int, int], bool],
    calls: dict[tuple[str, int], Captured],
) -> Iterator[None]:
    signature = inspect.signature(type(transformer).forward)

    def keep(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        context = watch.present[0]
        if wanted(context.step, context.steps) and (name, context.step) not in calls:
            given = signature.bind(module, *args, **kwargs).arguments
            taken = {key: moved(value, torch.device("cpu")) for key, value in list(given.items())[1:]}
            calls[name, context.step] = Captured(name, context.step, context.sigma, taken)

    handle = transformer.register_forward_hook(keep, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def moved(value: Any, device: torch.device) -> Any:
    """A value with its tensors on a device, also those in lists, tuples and dicts."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, (list, tuple)):
        return type(value)(moved(item, device) for item in value)
    return {key: moved(item, device) for key, item in value.items()} if isinstance(value, dict) else value
