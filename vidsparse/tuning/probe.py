"""What each candidate pattern would do to each head of each layer, and what it costs, measured while a call runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from vidsparse.attention import sparse_attention
from vidsparse.block_map import Plan, head_groups
from vidsparse.grid import VideoGrid
from vidsparse.patterns import Context, Dense, Pattern
from vidsparse.runtime.heads import dense_attention
from vidsparse.runtime.registry import adapter_for
from vidsparse.runtime.sparsify import sparsify
from vidsparse.runtime.stopwatch import Stopwatch
from vidsparse.tuning.turns import Turns


@dataclass
class Tally:
    """What a probe has found in the layers of one call.

    Attributes:
        errors: layer -> float64 [heads, candidates]: the mean square, over tokens and channels of the layer's output,
            of what the candidate changes in it through that head.
        densities: layer -> float64 [heads, candidates], of token pairs.
        tokens: of the video.
        turns: seconds of choosing and attention of a head, of each candidate in each layer, beside dense attention.
    """

    errors: dict[int, torch.Tensor] = field(default_factory=dict)
    densities: dict[int, torch.Tensor] = field(default_factory=dict)
    tokens: int = 0
    turns: Turns = field(default_factory=Turns)

    def stacked(self, name: str) -> torch.Tensor:
        """Errors or densities of all layers: float64 [layers, heads, candidates]."""
        of_layers: dict[int, torch.Tensor] = getattr(self, name)
        return torch.stack([of_layers[layer] for layer in sorted(of_layers)])


def probe(
    transformer: torch.nn.Module, call: Callable[[], Any], candidates: tuple[Pattern, ...], context: Context
) -> Tally:
    """Run a call of a transformer with its own attention, and try every candidate on the operands of each layer.

    Args:
        transformer: of a supported family. call: runs it once.
        candidates: patterns without a schedule.
        context: step and number of steps of the call, for candidates that ask.
    """
    attentions = list(adapter_for(transformer).self_attentions(transformer).values())
    prober = _Probe(candidates, tuple(map(_projection, attentions)), context)
    with torch.no_grad(), sparsify(transformer, prober):
        call()
    return prober.tally


@dataclass(frozen=True, eq=False)
class _Probe(Pattern):
    candidates: tuple[Pattern, ...]
    projections: tuple[torch.Tensor | None, ...]
    place: Context
    tally: Tally = field(default_factory=Tally)

    def plan(self, grid: VideoGrid, context: Context | None = None) -> Plan:
        return Dense().plan(grid, context)

    def select(self, query: torch.Tensor, key: torch.Tensor, grid: VideoGrid, context: Context) -> Plan:
        assert context.value is not None
        value, heads, layer = context.value, query.shape[2], context.layer
        context = replace(context, step=self.place.step, steps=self.place.steps)
        exact = dense_attention(query, key, value, grid, context.extra_valid)
        gram = self._gram(layer, heads, query.shape[3]).to(query.device)
        errors, densities = (torch.zeros(heads, len(self.candidates), dtype=torch.float64) for _ in range(2))

        def dense() -> float:
            stopwatch = Stopwatch(query.device)
            dense_attention(query, key, value, grid, context.extra_valid)
            return stopwatch.stop().seconds() / heads

        def run(index: int) -> float:
            stopwatch, ran = Stopwatch(query.device), []
            plan = self.candidates[index].select(query, key, grid, replace(context, memory={}))
            for group in head_groups(plan, heads):
                q, k, v = (x[:, :, list(group.heads)] for x in (query, key, value))
                ran.append((group, sparse_attention(q, k, v, group.block_map, extra_valid=context.extra_valid)))
            seconds = stopwatch.stop().seconds() / heads
            for group, found in ran:
                own = list(group.heads)
                lost = (found - exact[:, :, own]).float()
                spread = torch.einsum("bthd,hde,bthe->h", lost, gram[own], lost)
                errors[own, index] = spread.double().cpu() / (lost.shape[0] * lost.shape[1])
                densities[own, index] = group.block_map.head_densities[1].cpu().expand(len(own))
            return seconds

        self.tally.turns.take(len(self.candidates), run, dense, first=layer)
        self.tally.errors[layer], self.tally.densities[layer] = errors, densities
        self.tally.tokens = grid.tokens
        return Dense().plan(grid, context)

    def _gram(self, layer: int, heads: int, head_dim: int) -> torch.Tensor:
        """For each head, what the output projection makes of a square of its channels: float32 [heads, D, D]."""
        weight = self.projections[layer]
        if weight is None or weight.shape[1] != heads * head_dim:
            return torch.eye(head_dim).expand(heads, -1, -1) / (heads * head_dim)
        of_heads = weight.float().unflatten(1, (heads, head_dim))
        return torch.einsum("ohd,ohe->hde", of_heads, of_heads) / len(weight)


def _projection(attention: torch.nn.Module) -> torch.Tensor | None:
    """The weight of the output projection, [width, heads * head_dim]; None where there is none to read."""
    linear: Any = getattr(attention, "to_out", None)
    linear = linear[0] if isinstance(linear, (torch.nn.ModuleList, torch.nn.Sequential)) and len(linear) else linear
    weight = getattr(linear, "weight", None)
    return weight.detach() if isinstance(weight, torch.Tensor) and weight.is_floating_point() else None
