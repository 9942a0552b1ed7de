"""A transformer as its user had it, to which a training that cannot begin puts it back."""

from __future__ import annotations

from typing import Any

from vidsparse.lora.before import Before


class Untrained:
    """Which modules of a transformer there are, what learns, and in which mode they are.

    Args:
        module: the transformer, without a LoRA.
    """

    def __init__(self, module: Any):
        self._module, self._before = module, Before(module)
        self._modes = [(part, part.training) for part in module.modules()]
        self._recomputes = module.is_gradient_checkpointing

    def restore(self) -> None:
        """Put it back."""
        self._before.restore("default")  # diffusers' name of the LoRA that it adds
        for part, training in self._modes:
            part.training = training
        if not self._recomputes:
            self._module.disable_gradient_checkpointing()
