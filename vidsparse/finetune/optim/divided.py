"""DeepSpeed's ZeRO: states of the optimizer, and gradients, are divided among the processes.

DeepSpeed is given the weights of the LoRA and the loss. It never sees the transformer: frozen weights stay as they
are, wherever they rest, and accelerate's autocast is the one of every other training.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from vidsparse.finetune.process.zero import GRADIENTS

if TYPE_CHECKING:
    from accelerate import Accelerator

    from vidsparse.finetune.process.zero import Zero
    from vidsparse.finetune.settings import Settings

BUCKET = 500_000_000  # numbers of a gradient that are sent together at most, as by default in DeepSpeed


class LossOnly(torch.nn.Module):
    """Weights that learn, and the loss that they have: all that DeepSpeed needs to know of a model."""

    def __init__(self, weights: Mapping[str, torch.nn.Parameter]):
        super().__init__()
        self.weights = torch.nn.ParameterList(weights.values())

    def forward(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss as it is: its backward pass is that of the transformer."""
        return loss


class DividedUpdate:
    """Each process makes the step of its part of the weights, and gives it to the others.

    Args:
        module, weights, optimizer, settings, accelerator, state: as of `WholeUpdate`, whose states these are too. The
            optimizer must compute each number of a weight by itself, as AdamW does.
        zero: what is divided.
    """

    def __init__(
        self,
        module: Any,
        weights: Mapping[str, torch.nn.Parameter],
        optimizer: torch.optim.Optimizer,
        settings: Settings,
        accelerator: Accelerator,
        state: Mapping[str, Any] | None,
        zero: Zero,
    ):
        import deepspeed

        self._weights, self._writes = list(weights.values()), accelerator.is_main_process
        self._before = [dict(vars(weight)) for weight in self._weights]
        self._groups = [list(group["params"]) for group in optimizer.param_groups]
        self.model = accelerator.prepare_model(module, not settings.offload_base, evaluation_mode=True)
        for weight in self._weights:
            weight.data = weight.data.to(accelerator.device)
        bucket = bucket_of([weight.numel() for weight in self._weights], accelerator.num_processes)
        config = zero.config(settings.batch, settings.clip, bucket)
        with _quiet():
            self._engine, self.optimizer, _, _ = deepspeed.initialize(
                model=LossOnly(weights), optimizer=optimizer, config=config
            )
        if state is not None:
            try:
                self._load(state["optimizer"]["state"])
            except BaseException:
                self.close()
                raise

    def accumulating(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(self._engine(loss))

    def make(self, finite: bool) -> tuple[float, bool]:
        from deepspeed.utils import safe_set_full_grad

        if not finite:
            # DeepSpeed leaves out the step of a gradient that is not finite, in all processes.
            safe_set_full_grad(self._weights[0], torch.full_like(self._weights[0], math.nan))
        self._engine.step()
        return float(self._engine.get_global_grad_norm()), not self.optimizer.overflow

    def state(self) -> dict[str, Any]:
        from deepspeed.utils import lazy_init_hp_params_optimizer_state, safe_get_full_optimizer_state

        states: dict[int, dict[str, Any]] = {}
        groups, place = [], 0
        for group, weights in zip(self.optimizer.param_groups, self._groups, strict=True):
            (part,) = group["params"]
            if held := self.optimizer.state.get(part, {}):
                # DeepSpeed does so once, after the step of the first group, and misses the states of the others.
                lazy_init_hp_params_optimizer_state(weights, part, self.optimizer.state)
            for number, weight in enumerate(weights, place):
                for key, value in held.items():
                    if value.shape == part.shape:
                        value = safe_get_full_optimizer_state(weight, key)  # which all processes ask for
                    if self._writes:
                        states.setdefault(number, {})[key] = value.cpu()
            groups.append({**group, "params": list(range(place, place + len(weights)))})
            place += len(weights)
        return {"optimizer": {"state": states, "param_groups": groups}, "scaler": None}

    def _load(self, states: Mapping[int, Mapping[str, Any]]) -> None:
        """Give each process its part of the states of whole weights."""
        from deepspeed.utils import lazy_init_hp_params_optimizer_state, safe_set_full_optimizer_state

        place, held = 0, self.optimizer.state
        for group, weights in zip(self.optimizer.param_groups, self._groups, strict=True):
            (part,), known = group["params"], [states.get(place + number, {}) for number in range(len(weights))]
            place += len(weights)
            # A weight that had no gradient, in one process, has no state yet.
            first = next((number for number, state in enumerate(known) if state), None)
            if first is None:
                continue
            sample = known[first]
            whole = [key for key, value in sample.items() if value.shape == weights[first].shape]
            held[part] = {key: torch.zeros_like(part) if key in whole else sample[key].clone() for key in sample}
            lazy_init_hp_params_optimizer_state(weights, part, held)
            for weight, state in zip(weights, known, strict=True):
                for key in whole if state else ():
                    safe_set_full_optimizer_state(weight, state[key].to(part.device), key)

    def close(self) -> None:
        from deepspeed import comm

        self._engine.destroy()
        # DeepSpeed keeps its group for the next training, and then it is of processes that are no group any more.
        comm.destroy_process_group(self._engine.data_parallel_group)
        for weight, before in zip(self._weights, self._before, strict=True):
            vars(weight).clear()
            vars(weight).update(before)
            weight.data = weight.data.clone()  # instead of a part of one vector
        del self.model, self._engine, self.optimizer


def held_of_learned(sizes: list[int], processes: int, zero: Zero) -> int:
    """Bytes of weights that learn, and of their gradients, that a process holds.

    A formula of what DeepSpeed does: the weights whole, and once more the part that the process steps; of the gradient
    its part, in stage 1 all of it, and a bucket on its way.

    Args:
        sizes: of the weights, in numbers of float32.
        processes: that divide them.
        zero: what is divided.
    """
    whole, part = sum(sizes), -(-sum(sizes) // processes)
    bucket = int(zero.passed.get("zero_optimization.reduce_bucket_size", bucket_of(sizes, processes)))
    return 4 * (whole + part + (part if zero.stage >= GRADIENTS else whole) + bucket)


def bucket_of(sizes: list[int], processes: int) -> int:
    """Numbers of a gradient that are sent together, for which a process has memory beside its part of the gradient.

    Args:
        sizes: of the weights that learn, in numbers.
        processes: that divide them.
    """
    return min(BUCKET, max(*sizes, -(-sum(sizes) // processes)))


@contextmanager
def _quiet() -> Iterator[None]:
    """Within the context, DeepSpeed's log holds warnings and errors alone."""
    logger = logging.getLogger("DeepSpeed")
    before = logger.level
    logger.setLevel(max(before, logging.WARNING))
    try:
        yield
    finally:
        logger.setLevel(before)
