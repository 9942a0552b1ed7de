"""What every candidate costs in every head, layer and phase, and how much each of them matters to the video."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from vidsparse.generation.sample import sample
from vidsparse.patterns import Context, Dense, Pattern, PerHead, PerLayer, PerPhase
from vidsparse.runtime.pipeline import transformers_of
from vidsparse.runtime.registry import adapter_for
from vidsparse.runtime.sparsify import sparsify
from vidsparse.tuning.capture import Captured, Reference
from vidsparse.tuning.probe import probe

MIDDLE = 0.3  # density of the candidate that tries out layers and phases


@dataclass(frozen=True)
class Phases:
    """Ranges of denoising steps that are tuned each by itself.

    Attributes:
        steps: of the run.
        starts: the first step of each phase.
        sigmas: noise levels between one phase and the next.
    """

    steps: int
    starts: tuple[int, ...]
    sigmas: tuple[float, ...]

    @staticmethod
    def of(sigmas: tuple[float, ...], shares: tuple[float, ...] = (0.0, 0.1, 0.25, 0.5)) -> Phases:
        """Phases that start at shares of the steps; fewer where steps are few, or keep their noise level."""
        steps, starts = len(sigmas), [0]
        for start in sorted({round(share * len(sigmas)) for share in shares} - {0}):
            if start < steps and sigmas[start] < sigmas[start - 1]:
                starts.append(start)
        return Phases(steps, tuple(starts), tuple((sigmas[s - 1] + sigmas[s]) / 2 for s in starts[1:]))

    @property
    def lengths(self) -> tuple[int, ...]:
        """The steps of each phase."""
        ends = (*self.starts[1:], self.steps)
        return tuple(end - start for start, end in zip(self.starts, ends, strict=True))

    def phase(self, step: int) -> int:
        """The phase of a step."""
        return sum(step >= start for start in self.starts) - 1

    def is_middle(self, step: int, steps: int) -> bool:
        """Whether a step is in the middle of its phase: the one whose calls stand for it."""
        del steps
        phase = self.phase(step)
        return step == self.starts[phase] + self.lengths[phase] // 2


@dataclass(frozen=True)
class Measurement:
    """What a search allocates by.

    Attributes:
        errors: float64 [phases, layers, heads, candidates], in squares of the final latents: what the candidate
            changes there, if errors of heads, layers and phases add up.
        densities: of token pairs, the same shape.
        seconds: of one head in one call, for each candidate.
        phases: what the first axis is.
        branches: how many calls of a transformer a step has.
    """

    errors: torch.Tensor
    densities: torch.Tensor
    seconds: tuple[float, ...]
    phases: Phases
    branches: int

    def plain(self) -> dict[str, Any]:
        """For `Store.kept`."""
        phases = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self.phases).items()}
        return {**vars(self), "seconds": list(self.seconds), "phases": phases}

    @staticmethod
    def read(plain: Mapping[str, Any]) -> Measurement:
        """What `plain` wrote."""
        phases = Phases(**{k: tuple(v) if isinstance(v, list) else v for k, v in plain["phases"].items()})
        return Measurement(**{**plain, "seconds": tuple(plain["seconds"]), "phases": phases})

    @property
    def steps_of_units(self) -> torch.Tensor:
        """How many steps each [phase, layer, head] runs, float64."""
        lengths = torch.tensor(self.phases.lengths, dtype=torch.float64)
        return lengths[:, None, None].expand(self.errors.shape[:3])


def measure(
    pipe: Any,
    references: list[tuple[Mapping[str, Any], int, Reference]],
    phases: Phases,
    candidates: tuple[Pattern, ...],
    on_stage: Callable[[str, int, int], None],
) -> Measurement:
    """Try every candidate on the captured calls, then layers and phases by what they change in outputs and videos.

    Args:
        pipe: that the references were captured from.
        references: arguments, seed and capture of each video.
        candidates: `Dense` first.
        on_stage: called with a name, what is done and all.
    """
    transformers, device = transformers_of(pipe), pipe._execution_device
    calls = [call for _, _, reference in references for call in reference.calls]
    sums: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    seconds: dict[int, list[float]] = {}
    for done, call in enumerate(calls):
        on_stage("trying candidates", done, len(calls))
        transformer = transformers[call.transformer]
        context = Context(step=call.step, steps=phases.steps)
        tally = probe(transformer, lambda c=call, t=transformer: c.repeat(t, device), candidates, context)
        layers = sorted(tally.errors)
        found = tuple(torch.stack([of[layer] for layer in layers]) for of in (tally.errors, tally.densities))
        sums.setdefault(phases.phase(call.step), []).append((found[0], found[1]))
        for index, measured in tally.seconds.items():
            seconds.setdefault(index, []).extend(measured)
    errors, densities = (
        torch.stack([torch.stack([pair[i] for pair in sums[phase]]).mean(dim=0) for phase in sorted(sums)])
        for i in (0, 1)
    )
    errors[..., 0] = 0.0  # the dense candidate differs from dense by rounding
    usual = min(range(1, len(candidates)), key=lambda c: abs(float(densities[..., c].mean()) - MIDDLE))
    in_output = _of_layers(transformers, device, references[0][2].calls, phases, candidates[usual], on_stage)
    errors *= (in_output / errors[..., usual].sum(dim=2).clamp(min=1e-30))[..., None, None]
    in_video = _of_phases(pipe, references[0], phases, candidates[usual], on_stage)
    errors *= (in_video / in_output.sum(dim=1).clamp(min=1e-30))[:, None, None, None]
    return Measurement(
        errors,
        densities,
        tuple(median(seconds[index]) for index in range(len(candidates))),
        phases,
        references[0][2].branches,
    )


def _of_layers(
    transformers: Mapping[str, torch.nn.Module],
    device: torch.device,
    calls: tuple[Captured, ...],
    phases: Phases,
    pattern: Pattern,
    on_stage: Callable[[str, int, int], None],
) -> torch.Tensor:
    """Mean square of what a pattern in one layer alone changes in the transformer's output: [phases, layers]."""
    rows = []
    for done, call in enumerate(calls):
        transformer = transformers[call.transformer]
        exact, row = call.repeat(transformer, device).double(), []
        layers = len(adapter_for(transformer).self_attentions(transformer))
        for layer in range(layers):
            on_stage("trying layers", done * layers + layer, len(calls) * layers)
            alone = PerLayer((Dense(), pattern), tuple(int(i == layer) for i in range(layers)))
            with sparsify(transformer, alone):
                row.append((call.repeat(transformer, device).double() - exact).square().mean().cpu())
        rows.append((phases.phase(call.step), torch.stack(row)))
    return torch.stack([row for _, row in sorted(rows, key=lambda pair: pair[0])])


def _of_phases(
    pipe: Any,
    reference: tuple[Mapping[str, Any], int, Reference],
    phases: Phases,
    pattern: Pattern,
    on_stage: Callable[[str, int, int], None],
) -> torch.Tensor:
    """Mean square of what a pattern in one phase alone changes in the final latents: [phases]."""
    arguments, seed, dense = reference
    found = []
    for phase in range(len(phases.starts)):
        on_stage("trying phases", phase, len(phases.starts))
        patterns = tuple(pattern if i == phase else Dense() for i in range(len(phases.starts)))
        done = sample(pipe, PerPhase(patterns, phases.sigmas), {**arguments, "output_type": "latent"}, seed=seed)
        found.append((torch.as_tensor(done.frames).cpu().double() - dense.latents.double()).square().mean())
    return torch.stack(found)


def build(choice: torch.Tensor, candidates: tuple[Pattern, ...], phases: Phases) -> Pattern:
    """The pattern of a choice [phases, layers, heads], without parts that choose nothing."""
    of_phases = [_of_choices([_of_heads(heads, candidates) for heads in layers]) for layers in choice.tolist()]
    if all(pattern == of_phases[0] for pattern in of_phases):
        return of_phases[0]
    kept = [0, *(i for i in range(1, len(of_phases)) if of_phases[i] != of_phases[i - 1])]
    return PerPhase(tuple(of_phases[i] for i in kept), tuple(phases.sigmas[i - 1] for i in kept[1:]))


def _of_heads(heads: list[int], candidates: tuple[Pattern, ...]) -> Pattern:
    patterns, indices = _indexed([candidates[index] for index in heads])
    return patterns[0] if len(patterns) == 1 else PerHead(patterns, indices)


def _of_choices(layers: list[Pattern]) -> Pattern:
    patterns, indices = _indexed(layers)
    return patterns[0] if len(patterns) == 1 else PerLayer(patterns, indices)


def _indexed(patterns: list[Pattern]) -> tuple[tuple[Pattern, ...], tuple[int, ...]]:
    """The different ones, in the order they come first, and the index of each."""
    different = tuple(dict.fromkeys(patterns))
    return different, tuple(different.index(pattern) for pattern in patterns)
