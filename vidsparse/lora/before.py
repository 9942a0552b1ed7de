"""A model as it was before a LoRA was put into it: what a failure goes back to."""

from __future__ import annotations

import warnings
from typing import Any

import torch


class Before:
    """The modules of a model, and which of its parameters learn.

    Args:
        model: of diffusers, with LoRAs or without.
    """

    def __init__(self, model: torch.nn.Module):
        from peft.tuners.tuners_utils import BaseTunerLayer

        self._model: Any = model
        self._configs = getattr(model, "peft_config", None)
        self._children = [(part, dict(part._modules)) for part in model.modules()]
        self._learns = [(weight, weight.requires_grad) for weight in model.parameters()]
        self._active = [
            (part, list(part.active_adapters)) for part in model.modules() if isinstance(part, BaseTunerLayer)
        ]

    def restore(self, name: str) -> None:
        """Take a LoRA out that may be in a part of the layers only. Safe to call where there is none.

        Args:
            name: of the LoRA, which the model did not have before.
        """
        for layer, active in self._active:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of another LoRA that becomes active, which is set right below
                layer.delete_adapter(name)
            layer.set_adapter(active)
        for part, children in self._children:
            part._modules.clear()
            part._modules.update(children)
        for weight, learns in self._learns:
            weight.requires_grad_(learns)
        if self._configs is not None:
            self._configs.pop(name, None)
        elif hasattr(self._model, "peft_config"):
            del self._model.peft_config
        self._model._hf_peft_config_loaded = bool(self._configs)
