"""How a step is made of the gradients of all processes: the port, and the way where each process has all of them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    from accelerate import Accelerator

    from vidsparse.finetune.settings import Settings

# What accelerate sets on a model whose parameters DDP leaves alone.
IGNORED = "_ddp_params_and_buffers_to_ignore"


class Update(Protocol):
    """Gradients of all processes, and the optimizer that makes a step of them.

    Attributes:
        model: what a loss is computed with: the transformer, as it was wrapped.
        optimizer: has the groups of weights, for the learning rate.
    """

    model: Any
    optimizer: Any

    def accumulating(self) -> AbstractContextManager[Any]:
        """Within the context, the forward and backward pass of one video run."""

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        """Add the gradient of a video; `last` says that it completes the step."""

    def make(self, finite: bool) -> tuple[float, bool]:
        """Clip the gradient and make the step, in all processes alike; leave it out where anything is not finite.

        Args:
            finite: whether the losses of all processes are.

        Returns:
            The norm of the gradient before it is clipped, and whether the step was made.
        """

    def state(self) -> dict[str, Any]:
        """States of the optimizer under "optimizer", those of a scaler under "scaler".

        Every process calls it; the main process alone need have them all.
        """

    def close(self) -> None:
        """Take off the weights what was put on them."""


class WholeUpdate:
    """Each process has all gradients, which DDP averages, and makes the whole step.

    Args:
        module: the transformer with its LoRA.
        weights: of the LoRA, by name.
        optimizer: of these.
        settings: of the training.
        accelerator: of the training.
        state: of an earlier one, or None.
    """

    def __init__(
        self,
        module: Any,
        weights: Mapping[str, torch.nn.Parameter],
        optimizer: torch.optim.Optimizer,
        settings: Settings,
        accelerator: Accelerator,
        state: Mapping[str, Any] | None,
    ):
        self._weights, self._clip, self._accelerator = weights, settings.clip, accelerator
        if state is not None:
            factors = [group["factor"] for group in optimizer.param_groups]
            optimizer.load_state_dict(state["optimizer"])
            for group, factor in zip(optimizer.param_groups, factors, strict=True):
                group["factor"] = factor  # which an earlier version did not save
            if accelerator.scaler is not None:
                accelerator.scaler.load_state_dict(state["scaler"])
        # DDP would send around frozen weights, which each process has loaded and some backends cannot send.
        setattr(module, IGNORED, [name for name, weight in module.named_parameters() if not weight.requires_grad])
        placed = [not settings.offload_base, True]
        self.model, self.optimizer = accelerator.prepare(module, optimizer, device_placement=placed)

    def accumulating(self) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = self._accelerator.accumulate(self.model)
        return context

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        self._accelerator.backward(loss)

    def make(self, finite: bool) -> tuple[float, bool]:
        norm = float(self._accelerator.clip_grad_norm_(self._weights.values(), self._clip))
        made = finite
        if self._accelerator.scaler is not None:
            self.optimizer.step()  # the scaler leaves it out by itself, and lowers its scale
            made = made and not self.optimizer.step_was_skipped
        elif made := made and norm < float("inf"):
            self.optimizer.step()
        self.optimizer.zero_grad()
        return norm, made

    def state(self) -> dict[str, Any]:
        scaler = self._accelerator.scaler
        return {"optimizer": self.optimizer.state_dict(), "scaler": None if scaler is None else scaler.state_dict()}

    def close(self) -> None:
        # Free DDP first: freed last, it waits for gloo's threads while holding the GIL, which they wait for.
        del self.model
