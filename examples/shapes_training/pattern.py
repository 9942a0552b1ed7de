"""Searches the pattern that the second expert is trained with: one for each head, at a density."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vidsparse.atomic import replacing
from vidsparse.patterns import Context, Dense, Pattern, PerLayer, Radial
from vidsparse.runtime.sparsify import sparsify
from vidsparse.serialize import from_data, to_data
from vidsparse.tuning.allocate import allocate
from vidsparse.tuning.candidates import default_candidates
from vidsparse.tuning.measure import build
from vidsparse.tuning.phases import Phases
from vidsparse.tuning.probe import probe

if TYPE_CHECKING:
    from flow import Flow
    from latents import Pool

PATTERN = "pattern.json"
NOISE = 0.7
SCALE = 0.2  # density of the pattern that tells how much each layer matters


def find_pattern(flow: Flow, video: Pool, density: float) -> Pattern:
    """Choose a pattern for each head of each layer, so that all of them together have a density.

    Each candidate's error in a head is measured after the layer's output projection, and weighted by what one pattern
    in that layer alone changes in the transformer's output. `vidsparse.tuning.allocate` shares the density out.

    Args:
        flow: with the transformer. video: of whose first clip the errors are. density: of token pairs.
    """
    transformer = flow.transformer
    latent = flow.statistics.normalise(video.latents[:1].to(flow.device))
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0)).to(flow.device)
    condition, level = flow.prompts([video.examples[0][0].caption]), torch.tensor([NOISE], device=flow.device)

    def call() -> torch.Tensor:
        return flow.predict(latent, noise, level, condition)

    grid = flow.grid(latent)
    candidates = default_candidates(grid)
    with torch.no_grad():
        tally, exact = probe(transformer, call, candidates, Context()), call()
        errors, densities = tally.stacked("errors"), tally.stacked("densities")
        errors[..., 0] = 0.0  # the dense candidate differs from dense by rounding
        layers = len(errors)
        usual = Radial(density=SCALE, tile=candidates[0].tile)  # type: ignore[attr-defined]
        changed = []
        for layer in range(layers):
            alone = PerLayer((Dense(), usual), tuple(int(i == layer) for i in range(layers)))
            with sparsify(transformer, alone):
                changed.append((call() - exact).double().square().mean().cpu())
    own = errors[..., candidates.index(usual)].sum(dim=1)
    errors *= (torch.stack(changed) / own)[:, None, None]
    costs = densities.flatten(0, 1)
    budget = max(density * len(costs), float(costs.min(dim=1).values.sum()))  # a tiny grid is a single tile
    choice = allocate(errors.flatten(0, 1), costs, budget)
    return build(choice.view(1, *errors.shape[:2]), candidates, Phases(1, (0,), ()))


def write_pattern(pattern: Pattern, path: Path) -> None:
    """Write a pattern as JSON."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(to_data(pattern), indent=1) + "\n")


def read_pattern(*folders: Path) -> Pattern | None:
    """The pattern in the first of some folders that has one."""
    found = next((folder / PATTERN for folder in folders if (folder / PATTERN).is_file()), None)
    return None if found is None else from_data(json.loads(found.read_text()))  # type: ignore[no-any-return]
