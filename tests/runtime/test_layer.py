"""What a layer does for patterns and corrections beyond one map: groups of heads, memory, branches, exact calls."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from tiny_wan import SIZES, WITHOUT_PROMPT, Pipeline, call, tiny, tokens_of

from vidsparse import (
    BlockMap,
    ContentPattern,
    Context,
    Correction,
    Dense,
    HeadGroup,
    Pattern,
    PooledComplement,
    Radial,
    Rectified,
    Reshaped,
    Reuse,
    SlidingClip,
    SlidingTile,
    SparseCall,
    StepSchedule,
    TopBlocks,
    VideoGrid,
    attention,
    attn_processors,
    sparsify,
)
from vidsparse.attention import Choice
from vidsparse.runtime import heads
from vidsparse.runtime.heads import mean_value

GRID = tokens_of(SIZES["5x7x11"])
FLAT, LONG = Radial(density=0.3, tile=(1, 4, 4)), SlidingTile(window=(4, 2, 2), tile=(4, 2, 2))


@dataclass(frozen=True)
class PerHead(Pattern):
    """Groups as they are given: (heads, pattern) pairs."""

    groups: tuple[tuple[tuple[int, ...], Pattern], ...]

    def plan(self, grid: VideoGrid, context: Context | None = None) -> tuple[HeadGroup, ...]:
        maps = [(heads, pattern.plan(grid)) for heads, pattern in self.groups]
        return tuple(HeadGroup(heads, block_map) for heads, block_map in maps if isinstance(block_map, BlockMap))


@dataclass(frozen=True)
class Recording(ContentPattern):
    """Sees everything, and writes down what it was asked and what its memory held."""

    seen: list[tuple[Context, torch.dtype, int]] = field(default_factory=list, compare=False)

    def select(self, query: torch.Tensor, key: torch.Tensor, grid: VideoGrid, context: Context) -> BlockMap:
        held = len(context.memory)
        context.memory[context.step] = True
        self.seen.append((context, (query.float() @ key.float().mT).dtype, held))
        return Dense(tile=(1, 4, 4)).plan(grid)


@dataclass(frozen=True)
class Halved(Correction):
    """Gives half of the sparse output, or the dense one at chosen steps."""

    exact_steps: tuple[int, ...] = ()
    calls: list[SparseCall] = field(default_factory=list, compare=False)

    def correct(self, call: SparseCall) -> torch.Tensor:
        self.calls.append(call)
        return call.exact()[0] if call.context.step in self.exact_steps else call.out / 2


@pytest.mark.parametrize("impl", ["cpu", "reference"])
def test_each_group_of_heads_has_its_own_map(impl: str) -> None:
    transformer = tiny(num_attention_heads=3)
    pattern = PerHead((((0, 2), FLAT), ((1,), LONG)))
    mask = torch.cat([p.plan(GRID).token_mask() for p in (FLAT, LONG, FLAT)], dim=1)
    originals = [block.attn1.processor for block in transformer.blocks]
    for block, original in zip(transformer.blocks, originals, strict=True):

        def with_mask(attn: Any, x: Any, text: Any, no_mask: Any, rotary: Any, original: Any = original) -> Any:
            return original(attn, x, text, mask, rotary)

        block.attn1.processor = with_mask
    expected = call(transformer)
    for block, original in zip(transformer.blocks, originals, strict=True):
        block.attn1.processor = original
    with sparsify(transformer, pattern, impl=impl) as run:
        torch.testing.assert_close(call(transformer), expected)
    report = run.report()
    assert report.calls[0].tiles == ((1, 4, 4), (4, 2, 2))
    assert report.density == pytest.approx((2 * FLAT.plan(GRID).density + LONG.plan(GRID).density) / 3)
    assert "tile (1, 4, 4) and (4, 2, 2)" in report.ran[0]


@pytest.mark.parametrize("of", [((0,), (0,)), ((0,), (2,)), ((0,),)], ids=str)
def test_groups_that_miss_or_share_a_head_are_refused(of: tuple[tuple[int, ...], ...]) -> None:
    transformer = tiny()
    with sparsify(transformer, PerHead(tuple((h, FLAT) for h in of))):  # noqa: SIM117
        with pytest.raises(ValueError, match="expected each of 0 to 1 once"):
            call(transformer)


def test_memory_belongs_to_a_layer_and_branch_and_ends_with_the_video() -> None:
    transformer, pattern = tiny(), Recording()
    with sparsify(transformer, pattern):
        for timestep in (900.0, 500.0):
            call(transformer, timestep=timestep)
            call(transformer, timestep=timestep, **WITHOUT_PROMPT)
        call(transformer, timestep=900.0)
    first_layer = [(c.step, c.branch, held) for c, _, held in pattern.seen if c.layer == 0]
    assert first_layer == [(0, 0, 0), (0, 1, 0), (1, 0, 1), (1, 1, 1), (0, 0, 0)]
    assert [(c.step, c.branch, held) for c, _, held in pattern.seen if c.layer == 1] == first_layer
    stores = {id(c.memory): (c.layer, c.branch) for c, _, _ in pattern.seen[:4]}
    assert len(stores) == 4
    assert all(c.value is not None and c.heads == 2 for c, _, _ in pattern.seen)


@torch.no_grad()
@pytest.mark.parametrize(("steps", "start"), [(3, 4), (1, 0)], ids=["less-noise", "same-noise"])
def test_a_video_after_one_that_was_broken_off_begins_anew(steps: int, start: int) -> None:
    transformer, pattern, scheduler = tiny(), Recording(), FlowMatchEulerDiscreteScheduler()
    pipe = Pipeline(transformer=transformer, scheduler=scheduler)
    with sparsify(pipe, pattern):
        for made, first in ((steps, 0), (1, start)):
            scheduler.set_timesteps(10)
            for timestep in scheduler.timesteps[first : first + made]:
                call(transformer, timestep=float(timestep))
    held = [(c.step, held) for c, _, held in pattern.seen if c.layer == 0]
    assert held == [(n, n) for n in range(steps)] + [(start, 0)]


@torch.no_grad()
def test_a_long_video_in_clips_is_what_each_clip_would_be() -> None:
    """Rotary positions are relative: in one layer a frame's output is that of the middle frame of its clip alone."""
    transformer, latents = tiny(num_layers=1), torch.randn(1, 4, 9, 14, 22, generator=torch.Generator().manual_seed(5))
    with sparsify(transformer, SlidingClip(Dense(tile=(1, 4, 4)), frames=3)) as run:
        whole = call(transformer, hidden_states=latents)
        assert run.report().sparse_calls == 1
    for frame in range(1, 8):
        alone = call(transformer, hidden_states=latents[:, :, frame - 1 : frame + 2])
        torch.testing.assert_close(whole[:, :, frame], alone[:, :, 1])
    assert not torch.allclose(whole[:, :, 4], call(transformer, hidden_states=latents)[:, :, 4])


@torch.no_grad()
def test_clips_are_for_long_videos_and_take_no_correction_there() -> None:
    transformer, pattern = tiny(), SlidingClip(StepSchedule(FLAT, dense_layers=(0,)), frames=5)
    with sparsify(transformer, pattern, correction=PooledComplement()) as run:
        call(transformer)  # five latent frames: the pattern as it is
        assert (run.report().dense_calls, run.report().sparse_calls) == (1, 1)
        with pytest.raises(
            ValueError, match="would add frames beyond the clips of 5 latent frames of SlidingClip in a"
        ):
            call(transformer, (6, 14, 22))
    with sparsify(transformer, pattern) as run:
        call(transformer, (6, 14, 22))
    assert (run.report().dense_calls, run.report().sparse_calls) == (0, 2)


@torch.no_grad()
def test_nothing_is_kept_after_the_last_step() -> None:
    transformer, scheduler = tiny(), FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(3)
    pipe = Pipeline(transformer=transformer, scheduler=scheduler)
    with sparsify(pipe, FLAT, correction=Reshaped()) as run:
        kept = []
        for timestep in scheduler.timesteps:
            call(transformer, timestep=float(timestep))
            kept.append([len(block.attn1.processor.layer.memories) for block in transformer.blocks])
    assert kept == [[1, 1], [1, 1], [0, 0]]
    assert all(layer_call.kept_bytes > 0 for layer_call in run.report().calls)


@torch.no_grad()
def test_the_first_expert_keeps_nothing_while_the_second_computes() -> None:
    experts = tiny(), tiny()
    pipe = Pipeline(transformer=experts[0], transformer_2=experts[1])
    with sparsify(pipe, FLAT, correction=Reshaped()):
        kept = []
        for number, timestep in ((0, 900.0), (0, 700.0), (1, 500.0), (1, 300.0)):
            call(experts[number], timestep=timestep)
            kept.append([len(expert.blocks[0].attn1.processor.layer.memories) for expert in experts])
    assert kept == [[1, 0], [1, 0], [0, 1], [0, 1]]


@torch.no_grad()
def test_a_scheduler_without_timesteps_yet() -> None:
    transformer, scheduler = tiny(), FlowMatchEulerDiscreteScheduler()
    scheduler.timesteps = None
    with sparsify(Pipeline(transformer=transformer, scheduler=scheduler), FLAT) as run:
        call(transformer)
    assert run.report().sparse_calls == 2


@torch.no_grad()
def test_triton_is_asked_for_where_the_weights_will_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("vidsparse.runtime.sparsify.check_impl", lambda impl, device: asked.append((impl, device.type)))
    for there in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        for impl in ("triton", "cpu"):
            sparsify(tiny(), FLAT, impl=impl).restore()
    assert asked == [("triton", "cpu"), ("cpu", "cpu"), ("triton", "cuda"), ("cpu", "cpu")]


@torch.no_grad()
def test_a_correction_forgets_groups_of_heads_that_are_no_more() -> None:
    @dataclass(frozen=True)
    class Regrouping(Pattern):
        def plan(self, grid: VideoGrid, context: Context | None = None) -> tuple[HeadGroup, ...]:
            first = (0,) if context is None or context.step % 2 else (0, 1)
            rest = tuple({0, 1, 2} - set(first))
            return HeadGroup(first, FLAT.plan(grid)), HeadGroup(rest, LONG.plan(grid))  # type: ignore[arg-type]

    transformer = tiny(num_attention_heads=3)
    with sparsify(transformer, Regrouping(), correction=Reshaped(refresh_every=9)) as run:
        for timestep in (900.0, 800.0, 700.0, 600.0):
            call(transformer, timestep=timestep)
    kept = [layer_call.kept_bytes for layer_call in run.report().calls]
    assert len(set(kept)) == 1 and kept[0] > 0


@pytest.mark.parametrize("correction", [None, PooledComplement(), Rectified()], ids=repr)
def test_training_after_inference_mode(correction: Correction | None) -> None:
    # Sizes that no other test has, so that all that is kept for them comes from inference mode.
    sizes, transformer = (3, 10, 20 + len(repr(correction)) // 4 * 2), tiny()
    with sparsify(transformer, TopBlocks(density=0.3, tile=(1, 2, 4)), correction=correction):
        with torch.inference_mode():
            call(transformer, sizes)
        call(transformer, sizes).sum().backward()


@torch.no_grad()
def test_a_copy_of_a_sparsified_transformer_has_a_clock_of_its_own() -> None:
    transformer = tiny()
    with sparsify(transformer, StepSchedule(FLAT, dense_steps=1)) as run:
        copied = copy.deepcopy(transformer)
        expected = [call(transformer, timestep=t) for t in (900.0, 500.0)]
        run.reset()
        assert all(torch.equal(call(copied, timestep=t), x) for t, x in zip((900.0, 500.0), expected, strict=True))
        call(copied, SIZES["odd-pixels"])
        assert not run.report().calls
        with pytest.raises(TypeError, match="cannot be pickled; restore it first"):
            pickle.dumps(transformer)
    assert not torch.equal(*expected)


@torch.no_grad()
def test_a_transformer_in_the_wrapper_of_torch_compile() -> None:
    transformer = tiny()
    pipe = Pipeline(transformer=torch.compile(transformer, backend="eager"))
    with sparsify(pipe, FLAT) as run:
        call(transformer)
        report = run.report()
    assert report.flops_saved > 0 and not report.lost
    with sparsify(bare := Pipeline(transformer=transformer), FLAT) as run:
        bare.transformer = torch.compile(transformer, backend="eager")
        assert not run.report().lost


def test_a_restored_run_is_not_entered() -> None:
    run = sparsify(tiny(), FLAT)
    run.restore()
    with pytest.raises(ValueError, match="this run was restored; call sparsify again"), run:
        pass


def test_hidden_text_is_not_in_the_mean_of_all_values() -> None:
    grid = VideoGrid(2, 2, 2, prefix=1, suffix=2)
    value = torch.randn(2, grid.tokens, 3, 4, dtype=torch.float64)
    layout = Dense(tile=(1, 2, 2)).plan(grid).layout
    hidden = layout.padding_mask(torch.tensor([1, 3]))
    assert hidden is not None and hidden.nonzero().tolist() == [[0, 9], [0, 10]]
    expected = torch.stack([value[0, :9].mean(dim=0), value[1].mean(dim=0)])[:, None]
    torch.testing.assert_close(mean_value(value, hidden), expected)
    torch.testing.assert_close(mean_value(value, None), value.mean(dim=1, keepdim=True))


def test_the_report_counts_what_is_kept() -> None:
    transformer = tiny()
    top = TopBlocks(density=0.3, tile=(1, 4, 4))
    with sparsify(transformer, Reuse(top)) as run:
        call(transformer, timestep=900.0)
        call(transformer, timestep=900.0, **WITHOUT_PROMPT)
        call(transformer, timestep=500.0)  # the first branch again
    tiles = len(top.plan(GRID).counts.flatten())
    width = round(0.3 * tiles)
    # 2 layers, 2 branches, 2 heads, rows of a count and `width` indices of 16 bits.
    assert run.report().kept_bytes == 2 * 2 * 2 * tiles * (1 + width) * 2
    assert "kept from step to step: 0.0" in str(run.report())
    with sparsify(transformer, FLAT, correction=Reshaped()) as run:
        call(transformer)
    assert run.report().kept_bytes == 2 * Reshaped().cache_bytes(GRID, (1, 4, 4), 2, 12, itemsize=4)
    with sparsify(transformer, FLAT) as run:
        call(transformer)
    assert run.report().kept_bytes == 0 and "kept" not in str(run.report())


def test_maps_are_chosen_in_full_precision_under_autocast() -> None:
    transformer, pattern = tiny(), Recording()
    with sparsify(transformer, pattern), torch.autocast("cpu", torch.bfloat16):
        call(transformer)
    assert {dtype for _, dtype, _ in pattern.seen} == {torch.float32}


def test_a_correction_sees_the_call_and_its_answer_is_the_layers() -> None:
    transformer, correction = tiny(), Halved()
    projections = {}
    for i, block in enumerate(transformer.blocks):
        block.attn1.to_out[0].register_forward_pre_hook(lambda _, args, i=i: projections.update({i: args[0]}))
    with sparsify(transformer, FLAT, correction=correction, impl="reference") as run:
        call(transformer)
    seen = correction.calls[0]
    assert seen.query.shape == seen.key.shape == seen.value.shape == seen.out.shape == (1, GRID.tokens, 2, 12)
    assert seen.lse.shape == (1, 2, GRID.tokens) and seen.block_map is FLAT.plan(GRID)
    torch.testing.assert_close(projections[0], seen.out.flatten(2) / 2)
    assert run.report().pattern == f"{FLAT!r} with {correction!r}"
    assert run.report().density == pytest.approx(FLAT.plan(GRID).density)


def test_a_correction_of_a_group_of_heads_sees_that_group_alone() -> None:
    transformer, correction = tiny(num_attention_heads=3), Halved()
    with sparsify(transformer, PerHead((((0, 2), FLAT), ((1,), LONG))), correction=correction):
        call(transformer)
    assert [seen.context.heads for seen in correction.calls[:2]] == [2, 1]
    for seen in correction.calls:
        assert seen.context.value is not None and torch.equal(seen.context.value, seen.value)


def test_the_implementation_is_chosen_once_in_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def choose(*arguments: Any) -> Choice:
        asked.append(arguments[0])
        return right(*arguments)

    right = attention.choose_impl
    for module in (attention, heads):
        monkeypatch.setattr(module, "choose_impl", choose)
    transformer = tiny(num_layers=1)
    for correction in (None, Halved(exact_steps=(0,))):
        with sparsify(transformer, FLAT, correction=correction):
            call(transformer)
    assert asked == ["auto"] * 2


def test_exact_calls_are_dense_attention_and_counted_as_dense() -> None:
    transformer, correction = tiny(), Halved(exact_steps=(0,))
    expected = call(transformer, timestep=900.0)
    with sparsify(transformer, FLAT, correction=correction) as run:
        torch.testing.assert_close(call(transformer, timestep=900.0), expected)
        call(transformer, timestep=500.0)
    densities = {c.step: c.density for c in run.report().calls}
    assert densities[0] == 1 and densities[1] == pytest.approx(FLAT.plan(GRID).density)


def test_attn_processors_take_a_correction() -> None:
    transformer, correction = tiny(), Halved()
    transformer.set_attn_processor(attn_processors(transformer, FLAT, correction=correction))
    call(transformer)
    assert len(correction.calls) == 2


def test_something_else_than_a_correction_is_refused() -> None:
    with pytest.raises(TypeError, match="correction must be a correction or None, not 'pooled'"):
        sparsify(tiny(), FLAT, correction="pooled")  # type: ignore[arg-type]


@torch.no_grad()
def test_groups_name_the_heads_of_their_maps() -> None:
    """One group of all heads, in another order: the n-th map is that of the n-th head that it names."""
    near, far = Radial(density=0.3, tile=(1, 4, 4)), Dense(tile=(1, 4, 4))
    straight, turned = PerHead((((0,), near), ((1,), far))), OneGroup((((1,), far), ((0,), near)))
    found = []
    for pattern in (straight, turned):
        transformer = tiny()
        with sparsify(transformer, pattern):
            found.append(call(transformer))
    torch.testing.assert_close(found[0], found[1])


@dataclass(frozen=True)
class OneGroup(PerHead):
    """The same maps in one group."""

    def plan(self, grid: VideoGrid, context: Context | None = None) -> tuple[HeadGroup, ...]:
        groups = super().plan(grid, context)
        dense = torch.cat([group.block_map.to_dense() for group in groups], dim=1)
        one = groups[0].block_map
        heads = tuple(head for group in groups for head in group.heads)
        return (HeadGroup(heads, BlockMap.from_dense(dense, grid, one.query_tile, one.key_tile)),)
