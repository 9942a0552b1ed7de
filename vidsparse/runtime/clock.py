"""Reads in hooks of a transformer what its calls are told: grid, noise, and the scheduler of who calls."""

from __future__ import annotations

import copy
import inspect
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch.utils.hooks import RemovableHandle

from vidsparse.corrections.proxy_weights import ProxyWeights
from vidsparse.grid import VideoGrid
from vidsparse.runtime.adapter import Adapter
from vidsparse.runtime.cache_context import Ear, Told
from vidsparse.runtime.caches import cache_name, measured_layers
from vidsparse.runtime.guiders import Marks, Perturbation
from vidsparse.runtime.pipeline import calling_pipeline, uncompiled
from vidsparse.runtime.proxies import own_proxies
from vidsparse.runtime.ranks import Ranks
from vidsparse.runtime.steps import Schedule, StepCounter
from vidsparse.runtime.substitute import Substitute
from vidsparse.runtime.untraced import untraced

if TYPE_CHECKING:
    from vidsparse.runtime.run import Run


@runtime_checkable
class Listener(Protocol):
    """An attention layer, what skips steps, or the full branch.

    It is told before each call of the transformer, and after a video's end.
    Listeners are told in the order of their indices.
    """

    index: int

    def prepare(self) -> None:
        """Decide how it runs in the call that begins."""

    def forget(self, branch: int | None = None) -> None:
        """Free what is kept from step to step, of one branch or of all."""

    def record_compiled(self) -> None:
        """Record the last call if it ran inside a graph of `torch.compile`."""


class Clock:
    """Knows step, branch and grid of each forward call of one transformer.

    Args:
        transformer: gets a forward pre-hook, a forward hook and an `Ear`, until `remove` or the end of this object.
        adapter: reads the arguments of its calls.
        pipeline: the one that was sparsified, asked where no pipeline is on the call stack; None where there is none.

    Attributes:
        grid: tokens of the present call; None before the first call, and where the adapter cannot tell them.
        key_grid: tokens of keys and values in this call, where they are those of more frames; None: of `grid`.
        irregular: why it cannot, or None.
        steps: step, branch and video of the call.
        device, sizes: of the call's inputs.
        full_branch: whether the present pass is the full branch of `FreeSwim`, dense in all layers.
        ranks: the GPUs that share the video, or None.
        proxies: what each attention layer has learned for `ProxyTokens`, or None. A LoRA may bring others.
        layers: the attention layers that it prepares for each call, and what skips steps.
        substitutes: what takes the place of methods and attributes in the transformer, until `remove`.
        measured: indices of layers that a cache measures, see `measured_layers`.
        perturbation: what a guider has changed for the call.
        saver: what may leave out attention in the call, such as "FirstBlockCache" or "the schedule"; None: nothing
            that is known.
        run: the run that it belongs to, as long as someone has it, or None.
        earlier: the clock of the expert that has done its part when this transformer runs, or None.
        read_outside: whether the present call was read before it entered a graph that holds the whole transformer.
    """

    def __init__(self, transformer: torch.nn.Module, adapter: Adapter, pipeline: Callable[[], object | None]):
        self.adapter, self.pipeline = adapter, pipeline
        self.grid: VideoGrid | None = None
        self.key_grid: VideoGrid | None = None
        self.irregular: str | None = None
        self.steps = StepCounter()
        self.device = torch.device("cpu")
        self.ranks: Ranks | None = None
        of_class = inspect.signature(type(transformer).forward)  # the instance's own may be wrapped by a hook
        self.signature = of_class.replace(parameters=[*of_class.parameters.values()][1:])
        self.proxies: list[ProxyWeights | None] = []
        self.layers = weakref.WeakSet[Listener]()
        self.run: weakref.ref[Run] | None = None
        self.earlier: weakref.ref[Clock] | None = None
        self.read_outside = False
        self.full_branch, self.sizes = False, list[torch.Size]()
        self.is_last = False  # as `steps.is_last`, for graphs of `torch.compile`
        # The scheduler's timesteps, the dtype that they were rounded to, and their noise: the same in every step.
        self._noise: tuple[Any, torch.dtype | None, tuple[float, ...]] = None, None, ()
        self._ear = Ear(transformer) if Ear.fits(transformer) else None
        self.substitutes: list[Substitute | Marks] = [] if self._ear is None else [self._ear]
        self.measured: frozenset[int] = frozenset()
        self.perturbation = Perturbation()
        self.saver: str | None = None
        self._handles = [
            transformer.register_forward_pre_hook(_Before(self), with_kwargs=True),
            transformer.register_forward_hook(_After(self)),
        ]
        weakref.finalize(self, _remove, self._handles, self.substitutes)

    @staticmethod
    def of(transformer: torch.nn.Module) -> Clock | None:
        """The clock that reads the calls of a transformer, or None."""
        hooks = (hook for hook in transformer._forward_pre_hooks.values() if isinstance(hook, _Before))
        return next((clock for hook in hooks if (clock := hook.clock()) is not None), None)

    def watch(self, compiled: torch.nn.Module) -> None:
        """Read calls of what `torch.compile(transformer)` returned in hooks of its own, outside of its graph."""
        self._handles += [
            compiled.register_forward_pre_hook(_BeforeGraph(self), with_kwargs=True),
            compiled.register_forward_hook(_AfterGraph(self), always_call=True),
        ]

    def remove(self) -> None:
        """Remove all hooks and the substitutes. Safe to call twice."""
        _remove(self._handles, self.substitutes)

    @untraced
    def read(self, transformer: torch.nn.Module, call: Mapping[str, Any]) -> None:
        """Read one call from its arguments by name, before it runs."""
        self.grid = self.key_grid = self.irregular = None
        self.ranks = Ranks.of(transformer, self.adapter)
        try:
            grid, key_grid = self.adapter.grid(transformer, call), self.adapter.key_grid(transformer, call)
        except NotImplementedError as error:
            self.irregular = str(error)
        else:
            self.grid, self.key_grid = grid, key_grid
        timestep = self.adapter.timestep(transformer, call)
        told = Told() if self._ear is None else self._ear.told
        self.perturbation = Perturbation.of(transformer, self.adapter, call)
        schedule = self._schedule(transformer, call)
        self.steps.advance(call, self.grid, timestep, schedule, told, self.perturbation.modules)
        self.is_last = self.steps.is_last
        tensors = [x for x in call.values() if isinstance(x, torch.Tensor)]
        self.device, self.sizes = tensors[0].device, [x.shape for x in tensors]
        self.full_branch = False
        self.proxies = [own_proxies(attention) for attention in self.adapter.self_attentions(transformer).values()]
        if (earlier := None if self.earlier is None else self.earlier()) is not None:
            earlier.forget()  # noise only falls
        self.saver, self.measured = cache_name(transformer), measured_layers(transformer, self.adapter)
        for layer in sorted(self.layers, key=lambda layer: layer.index):
            layer.prepare()

    def prepare_layers(self) -> None:
        """Prepare the attention layers for one more pass of the same call."""
        for layer in self.layers:
            if layer.index >= 0:
                layer.prepare()

    def _schedule(self, transformer: torch.nn.Module, call: Mapping[str, Any]) -> Schedule:
        caller = calling_pipeline(transformer)
        scheduler = getattr(caller or self.pipeline(), "scheduler", None)
        timesteps = getattr(scheduler, "timesteps", None)  # None also before some schedulers have been set
        if timesteps is None:
            return Schedule()
        # Transformers get timesteps in the dtype of their weights, and some families count the other way round.
        dtype, (known, known_dtype, noise) = torch.as_tensor(call.get("timestep", 0.0)).dtype, self._noise
        if timesteps is not known or dtype != known_dtype:
            rounded = torch.as_tensor(timesteps).to(dtype).tolist()
            noise = tuple(self.adapter.timestep(transformer, {"timestep": t}) for t in rounded)
            self._noise = timesteps, dtype, noise
        # With a strength below 1, video to video runs the last timesteps of the scheduler alone.
        run, index = getattr(caller, "_num_timesteps", None), getattr(scheduler, "step_index", None)
        left_out = len(noise) - run if isinstance(run, int) and 0 < run < len(noise) else 0
        return Schedule(timesteps, noise[left_out:], None if index is None else max(0, index - left_out))

    @untraced
    def end_video(self) -> None:
        """Free what this branch has kept, and those that are over: after the last step the VAE needs the room."""
        self.steps.release()
        self.record_compiled()
        for layer in self.layers:
            for branch in self.steps.over:
                layer.forget(branch)

    def record_compiled(self) -> None:
        """Record what ran inside graphs of `torch.compile` and is not recorded yet."""
        for layer in sorted(self.layers, key=lambda layer: layer.index):
            layer.record_compiled()

    def forget(self) -> None:
        """Free what all layers keep from step to step."""
        self.steps.release()
        for layer in self.layers:
            layer.forget()

    def __getstate__(self) -> dict[str, Any]:
        # Copied layers add themselves; a copy belongs to no run, and a copied expert has no earlier one.
        return {**vars(self), "layers": None, "run": None, "earlier": None, "read_outside": False}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.layers = weakref.WeakSet(x for x in self.substitutes if isinstance(x, Listener))
        weakref.finalize(self, _remove, self._handles, self.substitutes)


class _Hook:
    """Drives a clock without keeping it alive: with `attn_processors`, clock and hooks end with the processors."""

    def __init__(self, clock: Clock):
        self.clock = weakref.ref(clock)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Hook:
        """A copy of the transformer has its own processors, and so its own clock."""
        clock = self.clock()
        return self if clock is None else type(self)(copy.deepcopy(clock, memo))

    def __reduce__(self) -> Any:
        raise TypeError("a sparsified transformer cannot be pickled; restore it first, and sparsify what was loaded")


class _Before(_Hook):
    def __call__(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        clock = self.clock()
        if clock is not None and not clock.read_outside:
            clock.read(module, clock.signature.bind_partial(*args, **kwargs).arguments)


class _After(_Hook):
    def __call__(self, module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
        clock = self.clock()
        if clock is not None and not clock.read_outside and clock.is_last:
            clock.end_video()


class _BeforeGraph(_Before):
    def __call__(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__call__(uncompiled(module), args, kwargs)
        if (clock := self.clock()) is not None:
            clock.read_outside = True


class _AfterGraph(_After):
    def __call__(self, module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if (clock := self.clock()) is not None:
            clock.read_outside = False
        super().__call__(module, args, output)


def _remove(handles: list[RemovableHandle], substitutes: list[Substitute | Marks]) -> None:
    for handle in handles:
        handle.remove()
    for substitute in substitutes:
        substitute.remove()
