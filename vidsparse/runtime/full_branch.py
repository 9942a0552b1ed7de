"""The full branch of FreeSwim: a dense pass whose cross-attention overrides that of the sparse pass."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from vidsparse.patterns import Context, FreeSwim, Pattern
from vidsparse.runtime.caches import cache_name
from vidsparse.runtime.clock import Clock
from vidsparse.runtime.substitute import Substitute
from vidsparse.runtime.untraced import untraced

Forward = Callable[..., torch.Tensor]


class FullBranch(Substitute):
    """Takes the place of `forward` on one transformer whose pattern is a `FreeSwim`.

    Where the full branch runs, the transformer runs twice: densely, which keeps the output of each cross-attention, and
    then as the pattern says, with these outputs in the place of its own. In between it runs once, with the kept ones.
    Steps that are dense in all layers run once, since both branches would be the same. Nothing of it is compiled.

    It is a listener of the clock: asked before the attention layers, and told when a video ends.

    Args:
        transformer, clock, name: as of the layers.
        freeswim: the pattern that asks for it. pattern: the whole pattern, with its schedule.
        cross_attentions: names of the modules. layers: how many attention layers the clock has.
    """

    method = "forward"
    index = -2

    def __init__(
        self,
        transformer: torch.nn.Module,
        clock: Clock,
        freeswim: FreeSwim,
        pattern: Pattern,
        name: str,
        cross_attentions: tuple[str, ...],
        layers: int,
    ):
        super().__init__(transformer)
        _refuse_cache(transformer, name)
        self._clock, self._freeswim, self._pattern, self._name = weakref.ref(clock), freeswim, pattern, name
        self._cross_attentions, self._layers = cross_attentions, layers
        self._video, self._overrides = 0, False
        # branch -> sizes of the call's inputs, and module name -> output of cross-attention
        self._kept: dict[int, tuple[list[torch.Size], dict[str, torch.Tensor]]] = {}
        clock.substitutes.append(self)
        clock.layers.add(self)

    def prepare(self) -> None:
        """Decide whether the call that begins is overridden, and whether it begins with the full branch.

        Raises:
            ValueError: a cache of diffusers is on too, which would count both passes.
            NotImplementedError: gradients are recorded.
        """
        clock, module = self._clock(), self._module()
        if clock is None or module is None:
            return
        _refuse_cache(module, self._name)
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "FreeSwim is for generation and has no gradients; call the model under torch.no_grad(), or train with "
                f"its windows alone: {self._freeswim.pattern!r}"
            )
        steps = clock.steps
        if self._video != steps.video:
            self._video = steps.video
            self.forget()
        context = Context(
            layers=self._layers,
            step=steps.step,
            steps=steps.steps,
            sigma=steps.sigma,
            transformer=self._name,
            branch=steps.branch,
            grid=clock.key_grid or clock.grid,
        )
        self._overrides = self._freeswim.overrides(context) and not all(
            self._pattern.is_dense(replace(context, layer=layer)) for layer in range(self._layers)
        )
        known = self._kept.get(steps.branch)
        is_due = known is None or known[0] != clock.sizes or self._freeswim.refreshes(context)
        clock.full_branch = self._overrides and is_due

    @untraced
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        clock, module, forward = self._clock(), self._module(), self.beneath()
        if not self._used or clock is None or module is None or not self._overrides:
            return forward(*args, **kwargs)
        modules = {name: module.get_submodule(name) for name in self._cross_attentions}
        branch = clock.steps.branch
        if clock.full_branch:
            kept: dict[str, torch.Tensor] = {}
            with _replaced(modules, lambda name, own: _keeping(kept, name, own)):
                forward(*args, **kwargs)
            self._kept[branch] = clock.sizes, kept
            clock.full_branch = False
            clock.prepare_layers()
        _, outputs = self._kept[branch]
        with _replaced(modules, lambda name, own: _overridden(outputs[name], modules[name], own)):
            return forward(*args, **kwargs)

    def forget(self, branch: int | None = None) -> None:
        """Free the outputs of one branch or of all."""
        for gone in [*self._kept] if branch is None else [branch]:
            self._kept.pop(gone, None)

    def record_compiled(self) -> None:
        """Nothing: neither pass runs in a graph."""

    def copied(self, memo: dict[int, Any]) -> None:
        clock = self._clock()
        self._kept = {}
        if clock is not None:
            self._clock = weakref.ref(copy.deepcopy(clock, memo))


def _refuse_cache(transformer: torch.nn.Module, name: str) -> None:
    """Refuse a cache of diffusers, which would count both passes."""
    if (cache := cache_name(transformer)) is not None:
        raise ValueError(f"{name} has {cache} on, which counts both passes of FreeSwim; disable the cache")


@contextmanager
def _replaced(modules: Mapping[str, torch.nn.Module], make: Callable[[str, Forward], Forward]) -> Iterator[None]:
    """Within it, each module has the `forward` that `make` returns for its name and own one."""
    before = {name: vars(module).get("forward") for name, module in modules.items()}
    try:
        for name, module in modules.items():
            vars(module)["forward"] = make(name, module.forward)
        yield
    finally:
        for name, module in modules.items():
            del vars(module)["forward"]
            if before[name] is not None:
                vars(module)["forward"] = before[name]


def _keeping(kept: dict[str, torch.Tensor], name: str, own: Forward) -> Forward:
    """A `forward` that keeps a copy of its output."""

    def forward(*args: Any, **kwargs: Any) -> torch.Tensor:
        out = own(*args, **kwargs)
        kept[name] = out.detach().clone()
        return out

    return forward


def _overridden(output: torch.Tensor, module: torch.nn.Module, own: Forward) -> Forward:
    """A `forward` that returns a copy of an output."""
    # Group offloading with streams fetches modules ahead in the order of the first call, so none may be left out.
    is_fetched = any(hasattr(inner, "_diffusers_hook") for inner in module.modules())

    def forward(*args: Any, **kwargs: Any) -> torch.Tensor:
        if is_fetched:
            own(*args, **kwargs)
        return output.clone()

    return forward
