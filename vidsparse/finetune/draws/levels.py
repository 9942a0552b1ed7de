"""How densely a training draws noise levels: evenly in the scheduler's spacing, or more often in the middle.

The two densities besides the even one are those of Esser et al., arXiv 2403.03206, section 3.1, as
`compute_density_for_timestep_sampling` of diffusers draws them. Here each is a distribution with its quantiles, so that
the levels of one step can cover their range evenly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

SAMPLINGS = ("uniform", "logit_normal", "mode")
HALVINGS = 60  # of an interval, until float64 has no more digits
LARGEST_MODE_SCALE = 2 / (math.pi - 2)  # with a larger one the density of "mode" is none


@dataclass(frozen=True)
class LevelSampling:
    """A density of u in (0, 1), which the scheduler's shift turns into noise levels.

    Attributes:
        kind: "uniform"; "logit_normal", whose logit is normal; or "mode", a hill or, below 0, a valley in the middle.
        mean, std: of the logit.
        mode_scale: height of the hill, from -1 to 1.75; 0 is uniform.

    Raises:
        ValueError: an unknown kind, or a number that gives no density.
    """

    kind: str = "uniform"
    mean: float = 0.0
    std: float = 1.0
    mode_scale: float = 1.29

    def __post_init__(self) -> None:
        if self.kind not in SAMPLINGS:
            raise ValueError(f"timestep_sampling={self.kind!r} is unknown; choose one of {', '.join(SAMPLINGS)}")
        if not math.isfinite(self.mean):
            raise ValueError(f"logit_mean={self.mean} must be a finite number")
        if not 0 < self.std < math.inf:
            raise ValueError(f"logit_std={self.std} must be above 0")
        if not -1 <= self.mode_scale <= LARGEST_MODE_SCALE:
            raise ValueError(f"mode_scale={self.mode_scale} must be from -1 to {LARGEST_MODE_SCALE:.2f}")

    def quantile(self, share: torch.Tensor) -> torch.Tensor:
        """The u below which a share in (0, 1) of all draws lies; the same shape and dtype."""
        if self.kind == "logit_normal":
            return torch.sigmoid(self.mean + self.std * torch.special.ndtri(share.double())).to(share.dtype)
        return self._hill(share) if self.kind == "mode" else share

    def share(self, u: float) -> float:
        """The share of all draws that lies below u: the inverse of `quantile`."""
        if self.kind == "uniform" or u <= 0 or u >= 1:
            return min(1.0, max(0.0, u))
        if self.kind == "logit_normal":
            logit = torch.tensor(u, dtype=torch.float64).logit()
            return float(torch.special.ndtr((logit - self.mean) / self.std))
        low, high = 0.0, 1.0
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            below = float(self._hill(torch.tensor(middle, dtype=torch.float64))) < u
            low, high = (middle, high) if below else (low, middle)
        return (low + high) / 2

    def _hill(self, share: torch.Tensor) -> torch.Tensor:
        """ "mode" of the paper with 1 - share for its uniform number, so that it rises."""
        uniform = 1 - share
        return share - self.mode_scale * (torch.cos(math.pi / 2 * uniform) ** 2 - 1 + uniform)


UNIFORM = LevelSampling()
