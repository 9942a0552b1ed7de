"""Queries, keys and values of a `shapes` model's layers in a dense generation, step by step."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from subject import prompts_of, sampling_of

from vidsparse.runtime.registry import adapter_for
from vidsparse.shapes import model

Tensors = tuple[torch.Tensor, ...]


class Moment(NamedTuple):
    """Query, key and value [batch, tokens, heads, head_dim] of one layer at a step, and some steps before."""

    layer: int
    before: Tensors
    now: Tensors


class Recorder:
    """A layer, and each call of it: keeps query, key and value at the wanted calls; what runs is dense."""

    reason = None

    def __init__(self, calls: set[int]):
        self.kept: dict[int, Tensors] = {}
        self.calls, self.count = calls, 0

    def begin(self, unsupported: str | None = None) -> Recorder:
        return self

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **_: object) -> torch.Tensor:
        if self.count in self.calls:
            self.kept[self.count] = tuple(x.clone() for x in (query, key, value))
        self.count += 1
        heads_first = (x.transpose(1, 2) for x in (query, key, value))
        return torch.nn.functional.scaled_dot_product_attention(*heads_first).transpose(1, 2)

    def end(self, call: Recorder, out: torch.Tensor) -> torch.Tensor:
        return out


def record(name: str, prompts: int, at: list[int], lag: int, layers: list[int]) -> list[Moment]:
    """Moments of some held-out prompts, of the expert with the most tokens, whose steps count from 0.

    Args:
        name: of the model.
        prompts: how many, evenly spaced.
        at: steps, without guidance.
        lag: steps from `before` to `now`.
        layers: those that are kept.
    """
    pipe = model.load_pipeline(model=name)
    pipe.set_progress_bar_config(disable=True)
    transformer: Any = getattr(pipe, "transformer_2", None) or pipe.transformer
    adapter, found = adapter_for(transformer), []
    if min(at) < lag or max(layers) >= len(transformer.blocks):
        raise SystemExit(f"steps {at} with a lag of {lag}, layers {layers}: a step is at least the lag, a layer there")
    attentions = [*adapter.self_attentions(transformer).values()]
    own = [attention.processor for attention in attentions]
    for number, scene in enumerate(prompts_of(prompts)):
        recorders = [Recorder({*at, *(step - lag for step in at)}) for _ in attentions]
        for attention, processor, recorder in zip(attentions, own, recorders, strict=True):
            attention.set_processor(adapter.processor(processor, recorder))
        settings = sampling_of(name) | {"guidance_scale": 1.0, "max_sequence_length": model.MAX_WORDS}
        pipe(scene.caption, generator=torch.Generator().manual_seed(number), output_type="latent", **settings)
        if missing := [step for step in at if step not in recorders[0].kept]:
            raise SystemExit(f"the expert has {recorders[0].count} steps, from 0: {missing} are not among them")
        kept = [(layer, recorders[layer].kept) for layer in layers]
        found += [Moment(layer, calls[step - lag], calls[step]) for layer, calls in kept for step in at]
    return found
