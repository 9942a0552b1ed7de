"""Processors that an adapter does not know, and the arguments that reach the ones it does."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel
from diffusers.models.attention_processor import CogVideoXAttnProcessor2_0
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from tiny_wan import SIZES, SPARSE, call, masked, tiny, tokens_of
from twins import class_or_skip, ignores_warnings, twin

import vidsparse_pipelines
from vidsparse import Dense, Radial, StepSchedule, attn_processors, sparsify
from vidsparse.runtime.registry import adapter_named
from vidsparse_pipelines.wan import WanSparseProcessor

REASON = "its processor is Louder, not WanAttnProcessor of diffusers"


class Louder(WanAttnProcessor):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return 1.5 * super().__call__(*args, **kwargs)


class Quiet(WanAttnProcessor):
    """Overrides nothing, but a method that it inherits might ask it for more."""


def louder(**changes: Any) -> Any:
    transformer = tiny(**changes)
    transformer.blocks[1].attn1.set_processor(Louder())
    return transformer


@torch.no_grad()
def test_a_subclass_of_a_processor_runs_dense_and_is_reported() -> None:
    transformer = louder()
    expected = call(transformer)
    assert not torch.equal(expected, call(tiny()))
    with sparsify(transformer, Dense()) as run:
        assert torch.equal(call(transformer), expected)
    assert run.report().dense_reasons == {"the pattern asks for it": 1, REASON: 1}
    with sparsify(transformer, SPARSE) as run:
        call(transformer)
    assert [(c.layer, c.reason) for c in run.report().calls] == [(0, None), (1, REASON)]
    assert isinstance(transformer.blocks[1].attn1.processor, Louder)


@pytest.mark.parametrize("make", [Quiet, lambda: lambda attn, x, *_: x], ids=["subclass", "function"])
@torch.no_grad()
def test_other_processors(make: Any) -> None:
    transformer = tiny()
    transformer.blocks[0].attn1.processor = processor = make()
    expected = call(transformer)
    with sparsify(transformer, SPARSE) as run:
        transformer.blocks[1].attn1.processor, ours = Dense, transformer.blocks[1].attn1.processor
        transformer.blocks[1].attn1.processor = ours.original  # so that only the first could differ
        assert torch.equal(call(transformer), expected)
    assert [(c.layer, bool(c.reason)) for c in run.report().calls] == [(0, True)]
    assert transformer.blocks[0].attn1.processor is processor


def test_strict_refuses_such_a_processor_before_anything_runs() -> None:
    transformer = louder()
    for refused in (sparsify, attn_processors):
        with pytest.raises(NotImplementedError, match=rf"transformer blocks\.1\.attn1 cannot be sparse: {REASON}"):
            refused(transformer, SPARSE, strict=True)
        assert not transformer._forward_pre_hooks and type(transformer.blocks[0].attn1.processor) is WanAttnProcessor


@torch.no_grad()
def test_a_class_can_say_how_it_is_sparse() -> None:
    class LouderSparse(WanSparseProcessor):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return 1.5 * super().__call__(*args, **kwargs)

    class Sparse(Louder):
        def sparse_processor(self, layer: Any) -> LouderSparse:
            return LouderSparse(self, layer)

    transformer = tiny()
    transformer.blocks[1].attn1.set_processor(Sparse())
    with masked(transformer, SPARSE, tokens_of(SIZES["5x7x11"])):
        expected = call(transformer)
    with sparsify(transformer, SPARSE, strict=True) as run:
        torch.testing.assert_close(call(transformer), expected, rtol=1e-4, atol=1e-5)
    assert run.report().sparse_calls == 2


class Scaled(CogVideoXAttnProcessor2_0):
    """Takes one more argument, which diffusers hands on by its name."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: Any = None,
        strength: float = 1.0,
    ) -> Any:
        out = super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
        return tuple(strength * x for x in out)


@torch.no_grad()
@pytest.mark.parametrize("copied", [False, True], ids=["", "copied"])
@pytest.mark.parametrize("pattern", [SPARSE, StepSchedule(SPARSE, dense_steps=9)], ids=["sparse", "dense"])
def test_arguments_of_a_call_reach_a_processor_that_takes_them(pattern: Any, copied: bool) -> None:
    torch.manual_seed(0)
    config = dict(num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=8)
    config |= dict(text_embed_dim=16, num_layers=2, sample_width=8, sample_height=8, sample_frames=9)
    transformer: Any = CogVideoXTransformer3DModel(**config, max_text_seq_length=7).eval()
    for block in transformer.transformer_blocks:
        block.attn1.set_processor(Scaled())
    arguments = {
        "hidden_states": torch.randn(1, 3, 4, 8, 8),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, 7, 16),
        "return_dict": False,
    }
    weaker, expected = transformer(**arguments)[0], transformer(**arguments, attention_kwargs={"strength": 3.0})[0]
    assert not torch.equal(weaker, expected)
    with sparsify(transformer, pattern):
        model = copy.deepcopy(transformer) if copied else transformer
        assert torch.equal(model(**arguments, attention_kwargs={"strength": 3.0})[0], expected)


@ignores_warnings
@pytest.mark.parametrize("name", vidsparse_pipelines.ADAPTERS)
def test_every_family_knows_its_processors_and_all_their_arguments(name: str) -> None:
    class_or_skip(name)
    model = twin(name).build()
    adapter = adapter_named(name)
    for attention in adapter.self_attentions(model).values():
        original: Any = attention.processor
        assert adapter.unknown(original) is None
        ours = adapter.wrap(original, None)  # type: ignore[arg-type]
        taken, given = (list(inspect.signature(x.__call__).parameters) for x in (original, ours))
        assert given[: len(taken)] == taken  # one processor of ours replaces both of LTX-2


@torch.no_grad()
def test_latents_are_cut_into_patches_of_every_kind() -> None:
    for name, view in (("WanTransformer3DModel", (3, 4, 5)), ("MochiTransformer3DModel", (3, 4, 5))):
        found = twin(name).grid(view)
        assert found.view == view and found.suffix == (7 if name.startswith("Mochi") else 0)
    assert Radial(density=1.0).plan(twin("CogVideoXTransformer3DModel").grid((3, 4, 5))).grid.prefix == 7
