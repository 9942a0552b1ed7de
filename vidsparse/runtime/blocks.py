"""Tells diffusers' caches and guiders which states the blocks of a transformer take and return."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry


@dataclass
class NamedStates(TransformerBlockMetadata):
    """Finds the states of a block by the block's own names for them.

    Caches and guiders of diffusers 0.42.1 ask for `hidden_states` and `encoder_hidden_states`, whatever a block calls
    them.
    """

    hidden_states_argument_name: str = "hidden_states"  # diffusers 0.36 lacks both
    encoder_hidden_states_argument_name: str = "encoder_hidden_states"

    def _get_parameter_from_args_kwargs(self, identifier: str, args: Any = (), kwargs: Any = None) -> Any:
        own = {
            "hidden_states": self.hidden_states_argument_name,
            "encoder_hidden_states": self.encoder_hidden_states_argument_name,
        }
        return super()._get_parameter_from_args_kwargs(own.get(identifier, identifier), args, kwargs)


def register_blocks(transformer: torch.nn.Module, states: Mapping[str, tuple[str, ...]]) -> None:
    """Register the blocks of a transformer in diffusers' `TransformerBlockRegistry`.

    Args:
        states: class of block -> names of the arguments that it returns changed: the video's first, then the other's.
            Blocks return them in the order of their signature.
    """
    for kind in {type(module) for module in transformer.modules() if type(module).__name__ in states}:
        video, *others = states[kind.__name__]
        names = [name for name in inspect.signature(kind.forward).parameters if name in (video, *others)]
        known = NamedStates(return_hidden_states_index=names.index(video), hidden_states_argument_name=video)
        for other in others:
            known.return_encoder_hidden_states_index = names.index(other)
            known.encoder_hidden_states_argument_name = other
        TransformerBlockRegistry.register(kind, known)
