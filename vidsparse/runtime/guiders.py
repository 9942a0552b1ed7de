"""Guiders of diffusers that change layers for one call: which ones they change, and what they must know of ours."""

from __future__ import annotations

import inspect
import math
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from vidsparse.runtime.adapter import Adapter

GUIDER = "a guider"
GUIDED = "a guider replaces the attention scores of this layer"

_ATTRIBUTE = "is_cross_attention"
# Classes of diffusers, by name: importing them takes seconds, and where there is a hook it is imported.
_LAYER_HOOKS = ("AttentionProcessorSkipHook", "TransformerBlockSkipHook")
_HOOKS = (*_LAYER_HOOKS, "FeedForwardSkipHook", "SmoothedEnergyGuidanceHook")


@dataclass(frozen=True)
class Perturbation:
    """What a guider changes in a transformer for the call that begins.

    Attributes:
        modules: names of the modules that have a hook of a guider.
        replaced: indices of attention layers whose scores the guider replaces. It does this to the function of PyTorch
            that the model's own attention calls, so a sparse call would not notice.
        left_out: indices of attention layers that do not run.
    """

    modules: tuple[str, ...] = ()
    replaced: frozenset[int] = frozenset()
    left_out: frozenset[int] = frozenset()

    @classmethod
    def of(cls, transformer: torch.nn.Module, adapter: Adapter, call: Mapping[str, Any]) -> Perturbation:
        """Read the hooks of a transformer, and the arguments of its `forward` by name."""
        replaced, left_out = set[int](), set(adapter.left_out(transformer, call))
        found = [(name, module, hook) for name, module in transformer.named_modules() for hook in _hooks(module)]
        layers = {id(module): index for index, module in enumerate(adapter.self_attentions(transformer).values())}
        for _, module, hook in found:
            if type(hook).__name__ not in _LAYER_HOOKS:
                continue
            inside = {layers[id(part)] for part in module.modules() if id(part) in layers}
            if getattr(hook, "skip_attention_scores", False):
                replaced |= inside
            elif math.isclose(hook.dropout, 1.0):  # less leaves some of the output, so layers run
                left_out |= inside
        return cls(tuple(name for name, _, _ in found), frozenset(replaced), frozenset(left_out))


def _hooks(module: torch.nn.Module) -> list[Any]:
    registry: Any = vars(module).get("_diffusers_hook")
    return [] if registry is None else [hook for hook in registry.hooks.values() if type(hook).__name__ in _HOOKS]


def introduce(transformer: torch.nn.Module, adapter: Adapter, processors: Iterable[object]) -> Marks:
    """Let guiders of diffusers find the layers of a sparsified transformer.

    Registers our processors, and the blocks that diffusers lacks.

    Args:
        processors: those that replace the model's own.

    Returns:
        What the attention modules say until it is removed.
    """
    from diffusers.hooks._helpers import AttentionProcessorMetadata, AttentionProcessorRegistry

    from vidsparse.runtime.blocks import register_blocks  # a class of it derives from one of diffusers

    unattended = AttentionProcessorMetadata(skip_processor_output_fn=_Unattended(adapter.attention_states))
    for kind in {type(processor) for processor in processors}:
        AttentionProcessorRegistry.register(kind, unattended)
    register_blocks(transformer, adapter.block_states)
    return Marks(transformer, adapter)


@dataclass(frozen=True)
class _Unattended:
    """What an attention module that a guider leaves out returns: the states that it was given.

    Attributes:
        names: of the arguments that it returns changed.
    """

    names: tuple[str, ...]

    def __call__(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(type(module).forward).bind(module, *args, **kwargs).arguments
        states = tuple(given[name] for name in self.names)
        return states if len(states) > 1 else states[0]


class Marks:
    """Says of attention modules that do not say it whether they are cross-attention, until `remove`.

    diffusers asks before it puts a hook into one, for all of a block. In blocks of the video only what adapters name is
    self-attention. Modules elsewhere stay as they are, since `fuse_projections` asks too.
    """

    def __init__(self, transformer: torch.nn.Module, adapter: Adapter):
        self._transformer = weakref.ref(transformer)
        own = adapter.self_attentions(transformer)
        blocks = [transformer.get_submodule(name.rpartition(".")[0]) for name in own]
        for module in (part for block in blocks for part in block.modules()):
            if hasattr(module, "processor") and not hasattr(module, _ATTRIBUTE):
                vars(module)[_ATTRIBUTE] = _Mark(all(module is not one for one in own.values()))

    def remove(self) -> None:
        """Remove all marks. Safe to call twice."""
        transformer = self._transformer()
        for module in () if transformer is None else transformer.modules():
            if isinstance(vars(module).get(_ATTRIBUTE), _Mark):
                del vars(module)[_ATTRIBUTE]

    def __deepcopy__(self, memo: dict[int, Any]) -> Marks:
        """A copy of the transformer has copies of the marks."""
        copied = memo[id(self)] = object.__new__(type(self))
        transformer = self._transformer()
        target = memo.get(id(transformer), transformer)
        copied._transformer = self._transformer if target is None else weakref.ref(target)
        return copied


class _Mark(int):
    """A bool that can be told from what others set."""
