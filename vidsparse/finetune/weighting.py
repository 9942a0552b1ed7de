"""How much a noise level counts in the loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vidsparse.finetune.families.task import TrainingTask

WEIGHTINGS = ("none", "sigma_sqrt", "cosmap", "min_snr")


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
            return snr.clamp(max=self.gamma) / (snr + 1)  # of a model that predicts velocities
        from diffusers.training_utils import compute_loss_weighting_for_sd3

        weights: torch.Tensor = compute_loss_weighting_for_sd3(self.kind, level)
        return weights
