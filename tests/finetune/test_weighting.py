"""What a family is trained to answer, and how much a noise level counts."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler, WanPipeline
from diffusers.training_utils import compute_loss_weighting_for_sd3, compute_snr

from vidsparse.finetune.draws.example import Example
from vidsparse.finetune.families import task_for
from vidsparse.finetune.families.wan import WanTask
from vidsparse.finetune.objective import loss_of
from vidsparse.finetune.weighting import LossWeighting

LEVELS = torch.tensor([0.1, 0.5, 0.9])


def test_flow_weightings_are_those_of_diffusers() -> None:
    for kind in ("none", "sigma_sqrt", "cosmap"):
        own = LossWeighting(kind).weight(LEVELS, WanTask())
        torch.testing.assert_close(own, compute_loss_weighting_for_sd3(kind, LEVELS))


def test_min_snr_is_the_paper_for_velocities() -> None:
    """With the signal-to-noise ratios of DDPM, as the training scripts of diffusers weight them."""
    snr = compute_snr(DDPMScheduler(), torch.tensor([50, 400, 900]))

    class Denoising(WanTask):
        prediction = "v_prediction"

        def snr(self, level: torch.Tensor) -> torch.Tensor:
            return snr

    task, clipped = Denoising(), torch.minimum(snr, torch.full_like(snr, 5.0))
    LossWeighting("min_snr").check(task)
    torch.testing.assert_close(LossWeighting("min_snr").weight(LEVELS, task), clipped / (snr + 1))
    with pytest.raises(ValueError, match="'cosmap' is not for a model that predicts v_prediction"):
        LossWeighting("cosmap").check(task)
    with pytest.raises(ValueError, match="'min_snr' is not for a model that predicts flow; choose one of none"):
        LossWeighting("min_snr").check(WanTask())


def test_a_weighted_loss_is_logged_unweighted() -> None:
    example = Example(torch.randn(1, 2, 3, 4, 4), torch.randn(1, 2, 3, 4, 4), torch.randn(1, 2, 3), torch.tensor([0.5]))
    loss, plain = loss_of(lambda hidden_states, **_: (hidden_states,), example, WanTask(), LossWeighting("sigma_sqrt"))
    torch.testing.assert_close(loss, 4 * plain)


def test_a_class_has_the_task_of_its_pipelines() -> None:
    assert task_for(WanPipeline) == WanTask()
    with pytest.raises(NotImplementedError, match="int cannot be trained"):
        task_for(int)
