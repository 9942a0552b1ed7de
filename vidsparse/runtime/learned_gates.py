"""Learned gates meet the transformer that they are put into: it must be the one that they were trained for."""

from __future__ import annotations

import torch

from vidsparse.patterns import LearnedGate, Pattern
from vidsparse.patterns.base import patterns_in
from vidsparse.runtime.model_settings import is_model


def check_gates(pattern: Pattern, transformer: torch.nn.Module, name: str, alone: bool) -> None:
    """Refuse the gates of another model.

    Args:
        pattern: that may hold a `LearnedGate`.
        transformer: that it is put into. name: in its pipeline.
        alone: whether it is without a pipeline, and so without a name of its own: the gate's file alone decides.

    Raises:
        ValueError: a gate that is missing, damaged, or for another transformer.
    """
    for inner in patterns_in(pattern):
        if not isinstance(inner, LearnedGate):
            continue
        gate = inner.load(name)
        known = gate.header
        if not is_model(transformer, known.model, known.config):
            raise ValueError(
                f"the gate {gate.path} was trained for {known.base} ({known.model}), and the model at hand is another "
                f"{type(transformer).__name__}; train one for it with vidsparse finetune --train-gate"
            )
        if not alone and known.transformer != name:
            raise ValueError(
                f"the gate {gate.path} is for {known.transformer!r}, and it was put into {name!r}; give the folder "
                f"that has a gate for each, or sparsify pipe.{known.transformer} alone"
            )
