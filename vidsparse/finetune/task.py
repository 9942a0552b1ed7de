"""What a model family is trained to answer: the arguments of a call, the target, and how much a noise level counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from vidsparse.finetune.draws.example import Example
from vidsparse.runtime.adapter import TRAIN_TIMESTEPS

WEIGHTINGS = ("none", "sigma_sqrt", "cosmap", "min_snr")


class TrainingTask(Protocol):
    """How the transformer of one family learns.

    Attributes:
        prediction: what it predicts: "flow", "epsilon", "v_prediction" or "sample".
    """

    @property
    def prediction(self) -> str: ...

    def noisy(self, example: Example) -> torch.Tensor:
        """The latents with the noise of the example's level, float32."""
        ...

    def arguments(self, noisy: torch.Tensor, example: Example, dtype: torch.dtype) -> dict[str, Any]:
        """The arguments of a call of the transformer, whose inputs are of `dtype`."""
        ...

    def target(self, example: Example) -> torch.Tensor:
        """What the transformer should answer, float32."""
        ...

    def snr(self, level: torch.Tensor) -> torch.Tensor:
        """Signal-to-noise ratio of a noise level."""
        ...

    def blank(self, config: Mapping[str, Any], view: tuple[int, int, int], words: int) -> Example:
        """An example of a size whose numbers mean nothing, for a forecast.

        Args:
            config: of the transformer. view: latent frames, height and width. words: of the text.
        """
        ...


@dataclass(frozen=True)
class WanTask:
    """Flow matching of Wan: at level s latents are (1 - s) x + s n, the answer is n - x, and the timestep 1000 s."""

    prediction: str = "flow"

    def noisy(self, example: Example) -> torch.Tensor:
        return torch.lerp(example.latents, example.noise, example.level)

    def arguments(self, noisy: torch.Tensor, example: Example, dtype: torch.dtype) -> dict[str, Any]:
        return {
            "hidden_states": noisy.to(dtype),
            "timestep": TRAIN_TIMESTEPS * example.level,
            "encoder_hidden_states": example.text.to(dtype),
        }

    def target(self, example: Example) -> torch.Tensor:
        return example.noise - example.latents

    def snr(self, level: torch.Tensor) -> torch.Tensor:
        return ((1 - level) / level) ** 2

    def blank(self, config: Mapping[str, Any], view: tuple[int, int, int], words: int) -> Example:
        latents = torch.empty(1, config["in_channels"], *view)
        return Example(latents, torch.empty_like(latents), torch.empty(1, words, config["text_dim"]), torch.empty(1))


def task_for(pipe: Any) -> TrainingTask:
    """The task of a pipeline, or of a class of pipelines.

    Raises:
        NotImplementedError: a pipeline that cannot be trained.
    """
    from diffusers import WanPipeline

    cls = pipe if isinstance(pipe, type) else type(pipe)
    if not issubclass(cls, WanPipeline):
        raise NotImplementedError(f"{cls.__name__} cannot be trained: finetune supports WanPipeline, text to video")
    return WanTask()


@dataclass(frozen=True)
class LossWeighting:
    """How much a noise level counts in the loss.

    Attributes:
        kind: "none": all alike. "sigma_sqrt" and "cosmap" are those of `compute_loss_weighting_for_sd3` in diffusers
            (Esser et al., arXiv 2403.03206). "min_snr" is that of Hang et al., arXiv 2303.09556: no level counts more
            than the one whose signal-to-noise ratio is gamma.
        gamma: of "min_snr".

    Raises:
        ValueError: an unknown kind, or a gamma that is not above 0.
    """

    kind: str = "none"
    gamma: float = 5.0

    def __post_init__(self) -> None:
        if self.kind not in WEIGHTINGS:
            raise ValueError(f"loss_weighting={self.kind!r} is unknown; choose one of {', '.join(WEIGHTINGS)}")
        if not self.gamma > 0:
            raise ValueError(f"snr_gamma={self.gamma} must be above 0")

    def check(self, task: TrainingTask) -> None:
        """Refuse a weighting that a task has no meaning for.

        Raises:
            ValueError: min-SNR with flow matching, or a weighting of flow matching with another prediction.
        """
        flow = task.prediction == "flow"
        if self.kind != "none" and flow == (self.kind == "min_snr"):
            fitting = [name for name in WEIGHTINGS if name == "none" or flow != (name == "min_snr")]
            raise ValueError(
                f"loss_weighting={self.kind!r} is not for a model that predicts {task.prediction}; choose one of "
                f"{', '.join(fitting)}"
            )

    def weight(self, level: torch.Tensor, task: TrainingTask) -> torch.Tensor:
        """The factor of the loss at a noise level, of the level's shape."""
        if self.kind == "none":
            return torch.ones_like(level)
        if self.kind == "min_snr":
            snr = task.snr(level)
            divisor = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}[task.prediction]
            return snr.clamp(max=self.gamma) / divisor
        from diffusers.training_utils import compute_loss_weighting_for_sd3

        weights: torch.Tensor = compute_loss_weighting_for_sd3(self.kind, level)
        return weights
