"""Densities of noise levels: those of diffusers, each with its quantiles."""

from __future__ import annotations

import pytest
import torch
from diffusers.training_utils import compute_density_for_timestep_sampling

from vidsparse.finetune.draws.levels import LevelSampling
from vidsparse.finetune.noise import draw_levels, share_of

KINDS = [
    LevelSampling(),
    LevelSampling("logit_normal", mean=0.5, std=0.8),
    LevelSampling("mode", mode_scale=1.29),
    LevelSampling("mode", mode_scale=-1.0),
]
SHARES = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)


@pytest.mark.parametrize("sampling", KINDS, ids=str)
def test_the_quantiles_are_those_of_what_diffusers_draws(sampling: LevelSampling) -> None:
    drawn = compute_density_for_timestep_sampling(
        sampling.kind, 100_000, logit_mean=sampling.mean, logit_std=sampling.std, mode_scale=sampling.mode_scale
    )
    own = sampling.quantile(SHARES)
    assert (own.diff() > 0).all()
    # The share of draws below each quantile; 5 standard errors of 100,000 draws.
    below = torch.searchsorted(drawn.double().sort().values, own) / 100_000
    assert (below - SHARES).abs().max() < 5 * 0.5 / 100_000**0.5


@pytest.mark.parametrize("sampling", KINDS, ids=str)
def test_a_share_is_the_inverse_of_a_quantile(sampling: LevelSampling) -> None:
    for share in (0.01, 0.3, 0.5, 0.9):
        u = float(sampling.quantile(torch.tensor(share, dtype=torch.float64)))
        assert sampling.share(u) == pytest.approx(share, abs=1e-9)
    assert (sampling.share(0.0), sampling.share(1.0)) == (0.0, 1.0)


@pytest.mark.parametrize("sampling", KINDS, ids=str)
def test_levels_stay_in_their_bounds_and_have_their_share(sampling: LevelSampling) -> None:
    levels = draw_levels(SHARES, 5.0, (0.2, 0.9), sampling)
    assert levels.min() > 0.2 and levels.max() < 0.9
    for place in (0, 500, 998):
        assert share_of(float(levels[place]), 5.0, (0.2, 0.9), sampling) == pytest.approx(float(SHARES[place]))
