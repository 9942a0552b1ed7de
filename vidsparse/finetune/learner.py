"""One optimizer step of a LoRA: the model under accelerate, its optimizer, and the running average of its weights."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from vidsparse.finetune.families import TrainingTask
from vidsparse.finetune.memory.base import whole_blocks
from vidsparse.finetune.memory.offload import offloading
from vidsparse.finetune.objective import ExampleStream, loss_of
from vidsparse.finetune.optim.divided import DividedUpdate
from vidsparse.finetune.optim.optimizers import build_optimizer, rate_groups, set_rates
from vidsparse.finetune.optim.update import IGNORED, Update, WholeUpdate
from vidsparse.finetune.process.groups import Groups
from vidsparse.finetune.settings import Settings
from vidsparse.runtime.proxies import is_proxy

if TYPE_CHECKING:
    from accelerate import Accelerator

    from vidsparse.finetune.process.zero import Zero

# Attributes that accelerate sets on a model in lower precision, and DDP reads.
WRAPPED = ("forward", "_original_forward", IGNORED)


@dataclass(frozen=True)
class Learned:
    """What a step gave, the same in all processes.

    Attributes:
        videos: noise level and loss of each video of all processes.
        norm: of the gradient, before it is clipped.
        made: whether the optimizer made its step; not where a loss or the gradient is not finite.
        asked: the signal that asked a process to stop; 0: none.
    """

    videos: list[tuple[float, float]]
    norm: float
    made: bool
    asked: int

    @property
    def loss(self) -> float:
        """The mean over all videos."""
        return sum(loss for _, loss in self.videos) / len(self.videos)


class Learner:
    """Makes the steps of a training.

    Args:
        module: the transformer with its LoRA.
        weights: of the LoRA, by name.
        settings: of the training.
        accelerator: of the training.
        task: of the model's family.
        stream: draws the videos.
        groups: of the processes that share a clip.
        state: of an earlier learner, or None.
        zero: what DeepSpeed divides among the processes, or None.
    """

    def __init__(
        self,
        module: Any,
        weights: Mapping[str, torch.nn.Parameter],
        settings: Settings,
        accelerator: Accelerator,
        task: TrainingTask,
        stream: ExampleStream,
        groups: Groups,
        state: Mapping[str, Any] | None,
        zero: Zero | None = None,
    ):
        from diffusers.training_utils import EMAModel

        self.module, self.weights, self.settings = module, weights, settings
        self.accelerator, self.task, self.stream, self.groups = accelerator, task, stream, groups
        rated = rate_groups(weights, settings.lora_plus_ratio)
        optimizer = build_optimizer(
            settings.optimizer, rated, settings.learning_rate, settings.weight_decay, accelerator.device
        )
        self.average = None if settings.ema is None else EMAModel(list(weights.values()), decay=settings.ema)
        if state is not None:
            for name, weight in weights.items():
                weight.data.copy_(state["weights"][name])
            if self.average is not None:
                self.average.load_state_dict(state["average"])
        if self.average is not None:
            self.average.to(accelerator.device)
        self._forward = {name: module.__dict__[name] for name in WRAPPED if name in module.__dict__}
        with ExitStack() as failure:
            failure.callback(self._unwrap)
            parts = module, weights, optimizer, settings, accelerator, state
            self.update: Update = WholeUpdate(*parts) if zero is None else DividedUpdate(*parts, zero)
            failure.pop_all()

    @property
    def model(self) -> Any:
        """The transformer as accelerate has wrapped it."""
        return self.update.model

    @property
    def dtype(self) -> torch.dtype:
        """Of the transformer's inputs; autocast chooses what it computes in."""
        dtype: torch.dtype = self.module.dtype if self.settings.precision == "no" else torch.float32
        return dtype

    def learn(self, step: int, before_video: Callable[[], None], asked: int = 0) -> Learned:
        """Make one optimizer step, or leave it out if a loss or the gradient is not finite.

        Args:
            step: how many were made before.
            before_video: called before each video.
            asked: a signal that asks this process to stop, which all processes learn of.
        """
        settings, accelerator, measured = self.settings, self.accelerator, []
        set_rates(self.update.optimizer, settings.rate(step))
        for part in range(settings.batch):
            example = self.stream.draw(step, part).to(accelerator.device)
            before_video()
            self._seed_dropout(step, part)
            with self.update.accumulating():
                with offloading(self.model, on=settings.offload_activations), whole_blocks(settings.base):
                    loss, plain = loss_of(self.model, example, self.task, settings.weighting, self.dtype)
                self.update.backward(loss + self._nothing(), last=part == settings.batch - 1)
            told = torch.full_like(plain, asked).reshape(1)
            measured.append(torch.cat([example.level, plain.reshape(1), told]))
        # What every process sees alike decides alike: all losses, and the norm of the gradient that they share.
        told_by_all = accelerator.gather(torch.stack(measured))
        norm, made = self.update.make(finite=bool(told_by_all[:, 1].isfinite().all()))
        if made and self.average is not None:
            self.average.step(self.weights.values())
        videos = [(level, loss) for level, loss, _ in self.groups.one_each(told_by_all).tolist()]
        return Learned(videos, norm, made, int(told_by_all[:, 2].max()))

    def _nothing(self) -> torch.Tensor | float:
        """Zero times the learned proxies: those of layers that run dense have a gradient too, in every process."""
        return sum((0 * weight.sum() for name, weight in self.weights.items() if is_proxy(name)), start=0.0)

    def _seed_dropout(self, step: int, part: int) -> None:
        """Give the dropout of a pass numbers that depend only on the step and the video."""
        if self.settings.dropout:
            place = part * self.groups.number + self.groups.own
            torch.manual_seed(random.Random(f"{self.settings.seed}-dropout-{step}-{place}").getrandbits(63))

    def is_finite(self) -> bool:
        """Whether all weights of the LoRA are finite."""
        return all(bool(weight.isfinite().all()) for weight in self.weights.values())

    def state(self) -> dict[str, Any]:
        """Copies of the weights, and their average; a checkpoint needs also what `update.state` gives."""
        return {
            "weights": {name: weight.detach().to("cpu", copy=True) for name, weight in self.weights.items()},
            "average": None if self.average is None else self.average.state_dict(),
        }

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within the context, the LoRA has the running average of its weights, if there is one."""
        if self.average is None:
            yield
            return
        weights = list(self.weights.values())
        self.average.store(weights)
        self.average.copy_to(weights)
        try:
            yield
        finally:
            self.average.restore(weights)

    def keep_average(self) -> None:
        """Give the LoRA the running average of its weights for good, if there is one."""
        if self.average is not None:
            self.average.copy_to(self.weights.values())

    def close(self) -> None:
        """Take off what accelerate put around the transformer."""
        self._unwrap()
        self.update.close()
        self.accelerator.free_memory()
        self.accelerator.end_training()

    def _unwrap(self) -> None:
        for name in WRAPPED:
            self.module.__dict__.pop(name, None)
        self.module.__dict__.update(self._forward)
