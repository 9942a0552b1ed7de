"""The full branch of FreeSwim against the published rule, written out for a batch of two in plain PyTorch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig, FlowMatchEulerDiscreteScheduler
from tiny_wan import SIZES, WITHOUT_PROMPT, Pipeline, call, generate, state, tiny, tokens_of, wan_pipeline
from twins import ignores_warnings, twin

from vidsparse import Dense, FreeSwim, InwardWindow, StepBudget, StepSchedule, sparsify
from vidsparse.runtime.full_branch import FullBranch
from vidsparse.runtime.layer import FULL
from vidsparse.runtime.registry import adapter_for

WINDOWS = InwardWindow(native=(3, 5), tile=(1, 2, 2))
SIZE = SIZES["5x7x11"]


def transformer_with_text() -> Any:
    """A tiny transformer whose cross-attention matters, and depends on where a token looks."""
    transformer = tiny()
    with torch.random.fork_rng():
        torch.manual_seed(5)
        for name, parameter in transformer.named_parameters():
            if ".attn2.to_" in name:
                torch.nn.init.normal_(parameter, std=0.5)
    return transformer


class TwoRows:
    """The published rule as processors: row 0 is the branch of the windows, row 1 the full one.

    In self-attention, row 0 has the window's mask, and row 1 has none. In cross-attention the query of row 1 alone is
    used, and its output is that of both rows. With `kept`, row 0 takes the output of an earlier step instead.
    """

    def __init__(self, transformer: Any, mask: torch.Tensor, kept: dict[int, torch.Tensor] | None = None):
        self.transformer, self.mask, self.kept = transformer, mask, kept
        self.found: dict[int, torch.Tensor] = {}

    def __enter__(self) -> TwoRows:
        self.before = [(block.attn1.processor, block.attn2.processor) for block in self.transformer.blocks]
        for index, block in enumerate(self.transformer.blocks):
            block.attn1.processor = self.self_attention
            block.attn2.processor = lambda *args, index=index: self.cross_attention(index, *args)
        return self

    def __exit__(self, *error: object) -> None:
        for block, (own, cross) in zip(self.transformer.blocks, self.before, strict=True):
            block.attn1.processor, block.attn2.processor = own, cross

    def self_attention(self, attn: Any, hidden: Any, text: Any, no_mask: Any, rotary: Any) -> torch.Tensor:
        original = self.before[0][0]
        rows = [original(attn, hidden[row : row + 1], text, mask, rotary) for row, mask in enumerate((self.mask, None))]
        return torch.cat(rows[: len(hidden)])

    def cross_attention(self, index: int, attn: Any, hidden: Any, text: Any, *others: Any) -> torch.Tensor:
        if self.kept is not None:
            return self.kept[index]
        out = self.before[0][1](attn, hidden[1:2], text[:1], *others)
        self.found[index] = out
        return torch.cat([out, out])


def two_rows(transformer: Any, timestep: float, kept: dict[int, torch.Tensor] | None = None) -> Any:
    """Row 0 of one step under the rule, and the outputs of cross-attention."""
    mask = WINDOWS.plan(tokens_of(SIZE)).token_mask()
    generator = torch.Generator().manual_seed(2)  # as `call` draws one sample
    video, text = torch.randn(1, 4, *SIZE, generator=generator), torch.randn(1, 7, 16, generator=generator)
    rows = 1 if kept is not None else 2
    inputs = {"hidden_states": video.repeat(rows, 1, 1, 1, 1), "encoder_hidden_states": text.repeat(rows, 1, 1)}
    with TwoRows(transformer, mask, kept) as rule:
        out = call(transformer, SIZE, batch=rows, timestep=timestep, **inputs)
    return out[:1], rule.found


def ten_steps() -> tuple[Any, Any, list[float]]:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(10)
    transformer = transformer_with_text()
    return transformer, Pipeline(transformer=transformer, scheduler=scheduler), scheduler.timesteps.tolist()


def branch_of(transformer: Any) -> FullBranch:
    found = vars(transformer)["forward"]
    assert isinstance(found, FullBranch)
    return found


@torch.no_grad()
def test_steps_are_those_of_the_published_rule() -> None:
    transformer, pipe, timesteps = ten_steps()
    expected, kept = [], {}
    for step, timestep in enumerate(timesteps):
        if step % 3 == 0:
            out, kept = two_rows(transformer, timestep)
        else:
            out, _ = two_rows(transformer, timestep, kept)
        expected.append(out)
    with sparsify(pipe, FreeSwim(WINDOWS, every=3)) as run:
        found = [call(transformer, SIZE, timestep=timestep) for timestep in timesteps]
        assert branch_of(transformer)._kept == {}, "freed after the last step"
    for out, rule in zip(found, expected, strict=True):
        torch.testing.assert_close(out, rule, atol=2e-5, rtol=1e-5)
    with sparsify(pipe, WINDOWS):
        alone = [call(transformer, SIZE, timestep=timestep) for timestep in timesteps]
    assert all((out - other).abs().max() > 1e-3 for out, other in zip(found, alone, strict=True))
    report = run.report()
    assert (report.sparse_calls, report.dense_calls, report.skipped_calls) == (2 * 10, 2 * 4, 0)
    assert {call.reason for call in report.calls if call.reason} == {FULL}


@torch.no_grad()
def test_windows_as_wide_as_the_video_change_nothing() -> None:
    transformer, pipe, timesteps = ten_steps()
    dense = [call(transformer, SIZE, timestep=timestep) for timestep in timesteps[:3]]
    with sparsify(pipe, FreeSwim(InwardWindow(scale=1.0), every=1)):
        found = [call(transformer, SIZE, timestep=timestep) for timestep in timesteps[:3]]
    for out, other in zip(found, dense, strict=True):
        torch.testing.assert_close(out, other, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("unconditional", [False, True])
@torch.no_grad()
def test_calls_without_the_prompt(unconditional: bool) -> None:
    transformer, pipe, timesteps = ten_steps()
    with sparsify(pipe, WINDOWS):
        call(transformer, SIZE, timestep=timesteps[0])
        alone = call(transformer, SIZE, timestep=timesteps[0], **WITHOUT_PROMPT)
    with sparsify(pipe, FreeSwim(WINDOWS, unconditional=unconditional)) as run:
        call(transformer, SIZE, timestep=timesteps[0])
        found = call(transformer, SIZE, timestep=timesteps[0], **WITHOUT_PROMPT)
        assert set(branch_of(transformer)._kept) == ({0, 1} if unconditional else {0})
    assert torch.equal(found, alone) == (not unconditional)
    assert run.report().dense_calls == (4 if unconditional else 2)


@torch.no_grad()
def test_dense_and_skipped_steps_are_one_pass_or_none() -> None:
    transformer, pipe, timesteps = ten_steps()
    with sparsify(pipe, StepSchedule(FreeSwim(WINDOWS), dense_steps=3)) as run:
        for timestep in timesteps[:5]:
            call(transformer, SIZE, timestep=timestep)
    # Three dense steps; then step 3, where nothing is kept, and step 4 have a full branch.
    assert (run.report().dense_calls, run.report().sparse_calls) == (2 * (3 + 2), 2 * 2)
    with sparsify(pipe, StepBudget(FreeSwim(WINDOWS), budget=0.5, sparse_cost=0.5)) as run:
        found = [call(transformer, SIZE, timestep=timestep) for timestep in timesteps]
    assert {skipped.step for skipped in run.report().skipped} == {4, 6, 8}
    assert all(torch.equal(found[step], found[step - 1]) for step in (4, 6, 8))


@torch.no_grad()
def test_another_size_has_a_full_branch_of_its_own() -> None:
    transformer, pipe, timesteps = ten_steps()
    with sparsify(pipe, FreeSwim(WINDOWS, every=9)) as run:
        call(transformer, SIZE, timestep=timesteps[0])
        call(transformer, SIZE, timestep=timesteps[1], batch=2)
        call(transformer, SIZE, timestep=timesteps[2], batch=2)
    assert run.report().dense_calls == 2 * 2


def test_a_pipeline_runs_and_is_put_back() -> None:
    pipe = wan_pipeline(experts=2)
    before = [state(t) for t in (pipe.transformer, pipe.transformer_2)]
    plain = generate(pipe)
    with sparsify(pipe, FreeSwim(InwardWindow(scale=2.0, tile=(1, 2, 2)))) as run:
        swum = generate(pipe)
        reasons = {call.reason for call in run.report().calls}
    assert {FULL, None} <= reasons
    assert not torch.equal(swum, plain) and torch.equal(generate(pipe), plain)
    assert [state(t) for t in (pipe.transformer, pipe.transformer_2)] == before
    for transformer in (pipe.transformer, pipe.transformer_2):
        assert all("forward" not in vars(module) for module in transformer.modules())


@torch.no_grad()
def test_a_copy_has_a_branch_of_its_own() -> None:
    transformer, pipe, timesteps = ten_steps()
    with sparsify(pipe, FreeSwim(WINDOWS)):
        expected = call(transformer, SIZE, timestep=timesteps[0])
        copied = copy.deepcopy(transformer)
        assert branch_of(copied) is not branch_of(transformer) and branch_of(copied)._kept == {}
        assert torch.equal(call(copied, SIZE, timestep=timesteps[0]), expected)
        assert set(branch_of(copied)._kept) == {0}


@torch.no_grad()
def test_compiled_blocks_give_the_same() -> None:
    transformer, pipe, timesteps = ten_steps()
    with sparsify(pipe, FreeSwim(WINDOWS)):
        expected = [call(transformer, SIZE, timestep=timestep) for timestep in timesteps[:3]]
    for block in transformer.blocks:
        block.compile(backend="eager")
    with sparsify(pipe, FreeSwim(WINDOWS)) as run:
        found = [call(transformer, SIZE, timestep=timestep) for timestep in timesteps[:3]]
    assert all(torch.equal(out, other) for out, other in zip(found, expected, strict=True))
    assert (run.report().dense_calls, run.report().sparse_calls) == (2 * 2, 2 * 3)


@torch.no_grad()
def test_an_error_leaves_the_modules_as_they_were() -> None:
    transformer, pipe, timesteps = ten_steps()
    broken = transformer.blocks[1].ffn.register_forward_pre_hook(lambda *_: 1 / 0)
    with sparsify(pipe, FreeSwim(WINDOWS)), pytest.raises(ZeroDivisionError):
        call(transformer, SIZE, timestep=timesteps[0])
    broken.remove()
    assert all("forward" not in vars(block.attn2) for block in transformer.blocks)


def test_gradients_and_caches_are_refused() -> None:
    transformer, pipe, timesteps = ten_steps()
    with sparsify(pipe, FreeSwim(WINDOWS)), pytest.raises(NotImplementedError, match="FreeSwim is for generation"):
        call(transformer, SIZE, timestep=timesteps[0])
    transformer.enable_cache(FirstBlockCacheConfig())
    refused = pytest.raises(ValueError, match="FirstBlockCache on, which counts both passes of FreeSwim")
    with refused:
        sparsify(pipe, FreeSwim(WINDOWS))
    transformer.disable_cache()
    with pytest.raises(ValueError, match="holds 2 FreeSwims, each with a pass of its own; keep one"):
        sparsify(pipe, FreeSwim(StepSchedule(FreeSwim(WINDOWS), dense_steps=1)))
    with sparsify(pipe, FreeSwim(WINDOWS)):
        transformer.enable_cache(FirstBlockCacheConfig())
        with torch.no_grad(), transformer.cache_context("cond"), refused:
            call(transformer, SIZE, timestep=timesteps[0])


def test_a_family_without_known_cross_attention_is_refused() -> None:
    from diffusers import MochiTransformer3DModel

    mochi = MochiTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, num_layers=1, pooled_projection_dim=8, text_embed_dim=8
    )
    with pytest.raises(NotImplementedError, match="MochiAdapter knows no cross-attention of Mochi"):
        sparsify(mochi, FreeSwim(Dense()))
    assert "forward" not in vars(mochi) and not mochi._forward_pre_hooks
    with sparsify(mochi, Dense()):
        pass


@ignores_warnings
@pytest.mark.parametrize("name", ["WanTransformer3DModel", "WanVACETransformer3DModel", "SkyReelsV2Transformer3DModel"])
@torch.no_grad()
def test_families_with_known_cross_attention(name: str) -> None:
    model = twin(name).build()
    arguments = twin(name).arguments(model, view=(2, 6, 8))
    dense, cross = model(**arguments)[0], adapter_for(model).cross_attentions(model)
    assert cross and all(module is model.get_submodule(key) for key, module in cross.items())
    own = {}
    for key, module in cross.items():
        module.register_forward_hook(lambda _, inputs, out, key=key: own.setdefault(key, []).append(out))
    with sparsify(model, FreeSwim(InwardWindow(scale=1.0), every=1)):
        whole = model(**arguments)[0]
    assert {len(outputs) for outputs in own.values()} == {2} and set(own) == set(cross)
    assert all(torch.equal(first, second) for first, second in own.values())
    torch.testing.assert_close(whole, dense, atol=1e-4, rtol=1e-4)
    with sparsify(model, FreeSwim(InwardWindow(scale=2.0, tile=(1, 1, 1)), every=1)):
        assert (model(**arguments)[0] - dense).abs().max() > 1e-5
