"""What every candidate costs in every head, layer and phase, and how much each of them matters to the video."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from vidsparse.generation.sample import sample
from vidsparse.patterns import Context, Dense, Pattern, PerHead, PerLayer, PerPhase
from vidsparse.runtime.pipeline import transformers_of
from vidsparse.runtime.registry import adapter_for
from vidsparse.runtime.sparsify import sparsify
from vidsparse.tuning.capture import Captured, Reference
from vidsparse.tuning.phases import Phases
from vidsparse.tuning.probe import Tally, probe
from vidsparse.tuning.turns import Turns

MIDDLE = 0.3  # density of the candidate that tries out layers and phases
TINY = 1e-30  # in the place of an error of 0


@dataclass(frozen=True)
class Measurement:
    """What a search allocates by.

    Attributes:
        errors: float64 [phases, layers, heads, candidates], in squares of the final latents: what the candidate
            changes there, if errors of heads, layers and phases add up.
        densities: of token pairs, the same shape.
        seconds: of one head in one call, float64 [phases, candidates].
        pairs: of tokens in each phase, as a share of those of the transformer with the most tokens, float64 [phases].
        phases: what the first axis is.
        branches: how many calls of a transformer a step has.
    """

    errors: torch.Tensor
    densities: torch.Tensor
    seconds: torch.Tensor
    pairs: torch.Tensor
    phases: Phases
    branches: int

    def plain(self) -> dict[str, Any]:
        """For `Store.kept`."""
        phases = {"steps": self.phases.steps, "starts": list(self.phases.starts), "sigmas": list(self.phases.sigmas)}
        return {**vars(self), "phases": phases}

    @staticmethod
    def read(plain: Mapping[str, Any]) -> Measurement:
        """What `plain` wrote."""
        known = plain["phases"]
        phases = Phases(known["steps"], tuple(known["starts"]), tuple(known["sigmas"]))
        return Measurement(**{**plain, "phases": phases})

    def costs(self, kind: str) -> torch.Tensor:
        """What each candidate costs in all steps of a phase, float64 [phases, layers, heads, candidates].

        Args:
            kind: "seconds" of this machine, or "density": token pairs, the same on every machine.
        """
        each = self.densities * self.pairs[:, None, None, None] if kind == "density" else self.seconds[:, None, None, :]
        return each.expand_as(self.errors) * self.steps_of_units[..., None]

    @property
    def steps_of_units(self) -> torch.Tensor:
        """How many steps each [phase, layer, head] runs, float64."""
        lengths = torch.tensor(self.phases.lengths, dtype=torch.float64)
        return lengths[:, None, None].expand(self.errors.shape[:3])


class Recorded(NamedTuple):
    """A video that was captured: the arguments of `pipe(...)`, its seed, and what was captured."""

    arguments: Mapping[str, Any]
    seed: int
    reference: Reference


def measure(
    pipe: Any,
    videos: Sequence[Recorded],
    phases: Phases,
    candidates: tuple[Pattern, ...],
    on_stage: Callable[[str, int, int], None],
) -> Measurement:
    """Try every candidate on the captured calls, then layers and phases by what they change in outputs and videos.

    Args:
        pipe: that the videos were captured from.
        candidates: `Dense` first.
        on_stage: called with a name, what is done and all.
    """
    transformers, device = transformers_of(pipe), pipe._execution_device
    calls = [call for video in videos for call in video.reference.calls]
    tallies: dict[int, list[Tally]] = {}
    experts: dict[int, str] = {}  # of each phase
    for done, call in enumerate(calls):
        on_stage("trying candidates", done, len(calls))
        transformer = transformers[call.transformer]
        repeat = functools.partial(call.repeat, transformer, device)
        context, phase = Context(step=call.step, steps=phases.steps), phases.phase(call.step)
        experts[phase] = call.transformer
        tallies.setdefault(phase, []).append(probe(transformer, repeat, candidates, context))
    errors, densities = (
        torch.stack(
            [torch.stack([tally.stacked(name) for tally in tallies[phase]]).mean(dim=0) for phase in sorted(tallies)]
        )
        for name in ("errors", "densities")
    )
    errors[..., 0] = 0.0  # the dense candidate differs from dense by rounding
    usual = min(range(1, len(candidates)), key=lambda index: abs(float(densities[..., index].mean()) - MIDDLE))
    in_output = _of_layers(transformers, device, videos[0].reference.calls, phases, candidates[usual], on_stage)
    errors *= (in_output / errors[..., usual].sum(dim=2).clamp(min=TINY))[..., None, None]
    in_video = _of_phases(pipe, videos[0], phases, candidates[usual], on_stage)
    errors *= (in_video / in_output.sum(dim=1).clamp(min=TINY))[:, None, None, None]
    seconds = {name: _seconds(tallies, [p for p in experts if experts[p] == name]) for name in {*experts.values()}}
    tokens = torch.tensor([tallies[phase][0].tokens for phase in sorted(tallies)], dtype=torch.float64)
    return Measurement(
        errors,
        densities,
        torch.stack([seconds[experts[phase]] for phase in sorted(tallies)]),
        (tokens / tokens.max()).square(),
        phases,
        videos[0].reference.branches,
    )


def _seconds(tallies: Mapping[int, list[Tally]], phases: list[int]) -> torch.Tensor:
    """Seconds of each candidate in the phases of one transformer: float64 [candidates]."""
    turns = Turns.joined([tally.turns for phase in phases for tally in tallies[phase]])
    return torch.tensor(turns.seconds(), dtype=torch.float64)


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
    video: Recorded,
    phases: Phases,
    pattern: Pattern,
    on_stage: Callable[[str, int, int], None],
) -> torch.Tensor:
    """Mean square of what a pattern in one phase alone changes in the final latents: [phases]."""
    number = len(phases.starts)
    arguments, dense = {**video.arguments, "output_type": "latent"}, video.reference.latents.double()
    found = []
    for phase in range(number):
        on_stage("trying phases", phase, number)
        patterns = tuple(pattern if i == phase else Dense() for i in range(number))
        done = sample(pipe, PerPhase(patterns, phases.sigmas), arguments, seed=video.seed)
        found.append((torch.as_tensor(done.frames).cpu().double() - dense).square().mean())
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
