"""MiniMax-H3 and Cosmos 3, which pack text, conditions, sound and video into one sequence, on tiny random models.

Sequences are packed by diffusers' own pipelines. The oracle is diffusers' own processor whose attention of the video
gets the block map, expanded to tokens, as its mask.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch

from vidsparse import Dense, Pattern, Radial, SlidingTile, StepSchedule, VideoGrid, attn_processors, sparsify
from vidsparse_pipelines import adapter_for

before_denoise: Any = pytest.importorskip("diffusers.modular_pipelines.minimax_h3.before_denoise")
h3_blocks: Any = pytest.importorskip("diffusers.modular_pipelines.minimax_h3.modular_blocks_minimax_h3")
cosmos3_blocks: Any = pytest.importorskip("diffusers.modular_pipelines.cosmos.modular_blocks_cosmos3")

SPARSE = Radial(density=0.3, tile=(1, 4, 4))
KEEPS_ALL = SlidingTile(window=(99, 99, 99))
VIEWS = {"3x5x7": (3, 5, 7), "one-frame": (1, 5, 6)}
TEXT, SOUND, ACTIONS, LAYERS = 9, 4, 3, 2
NOISE = 0.7

View = tuple[int, int, int]
Build = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Case:
    """A tiny model, the arguments of its forward pass, and the tokens around the video besides text."""

    model: str
    config: dict[str, Any]
    arguments: Callable[..., dict[str, Any]]
    around: Callable[[View], tuple[int, int]]
    options: dict[str, Any] = field(default_factory=dict)

    def build(self, **changes: Any) -> Any:
        """The same random weights for the same settings."""
        with torch.random.fork_rng():
            torch.manual_seed(1)
            transformer = getattr(diffusers, self.model)(**(self.config | changes))
            for name, parameter in transformer.named_parameters():
                # Attention far from uniform, through which much passes.
                if any(part in name for part in ("to_q", "to_k", "to_v", "add_q", "add_k", "add_v", "adaln_proj")):
                    torch.nn.init.normal_(parameter, std=0.3)
        return transformer.eval()

    def grid(self, view: View = (3, 5, 7), text: int = TEXT) -> VideoGrid:
        before, after = self.around(view)
        return VideoGrid(*view, prefix=text + before, suffix=after)


def h3(
    transformer: Any,
    view: View,
    text: int,
    batch: int,
    noise: Build,
    anchors: tuple[str, ...] = (),
    refers: bool = False,
) -> dict[str, Any]:
    """Key frames at the ends of the video (`anchors`), or an image, a video with sound and sound as references."""
    frames, height, width = view
    tags, sizes = torch.ones(text).long(), (frames, 2 * height, 2 * width, SOUND, (1, 2, 2), 2, 2, 0)
    tags[1:3] = 0  # the text encoder's own image tokens
    if refers:
        references = [SimpleNamespace(kind=kind, has_audio=True) for kind in ("image", "video", "audio")]
        latents = [torch.empty(1, 4, *size) for size in ((1, 4, 6), (2, 6, 4))]
        sounds = [torch.empty(2 * count, 3) for count in (2, 3)]
        pack = before_denoise.MiniMaxH3Ref2VAPrepareLayoutStep.build_ref2va_packed_sequence
        packed = pack(tags, references, latents, sounds, *sizes)
    else:
        packed = before_denoise.MiniMaxH3PrepareLayoutStep.build_packed_sequence(tags, *sizes, anchors)
    positions, tags, video, sound, words, conditions, heard = packed
    rows = before_denoise.MiniMaxH3SetTimestepsStep.build_row_timesteps(
        video, sound, conditions, heard, text, 1 - NOISE, 0.6, 0.999, 1.0
    )
    return {
        "hidden_states": noise(batch, len(video), 16),
        "audio_hidden_states": noise(batch, len(sound), 3),
        "encoder_hidden_states": noise(batch, text, 10),
        "timestep": rows[0],
        "timestep_indices": rows[1],
        "token_tags": tags,
        "position_ids": positions,
        "video_indices": video,
        "audio_indices": sound,
        "text_indices": words,
    }


def cosmos3(
    transformer: Any, view: View, text: int, batch: int, noise: Build, controls: int = 0, sounds: bool = False
) -> dict[str, Any]:
    """With control videos, or with sound, action and a condition frame."""
    frames, height, width = view
    make, on = diffusers.Cosmos3OmniPipeline, SimpleNamespace(transformer=transformer, vae_scale_factor_temporal=4)
    arguments = make._prepare_text_segment(on, list(range(text)), "cpu")
    offset, end = arguments["vision_start_temporal_offset"], text
    lengths = [frames + 1] * controls + [frames]
    videos = [noise(1, 4, length, 2 * height - 1, 2 * width) for length in lengths]
    parts = []
    for index, video in enumerate(videos):
        conditions = list(range(frames + 1)) if index < controls else [0] if sounds and frames > 1 else []
        parts.append(make._prepare_vision_segment(on, video, False, offset, 24.0, end, "cpu", conditions))
        end += parts[-1]["num_vision_tokens"]
    joined: dict[str, Any] = {"vision_tokens": videos, "position_ids": [arguments["text_mrope_ids"]]}
    for name in ("vision_token_shapes", "vision_noisy_frame_indexes"):
        joined[name] = [item for part in parts for item in part[name]]
    for name in ("vision_sequence_indexes", "vision_mse_loss_indexes"):
        joined[name] = torch.cat([part[name] for part in parts])
    joined["position_ids"] += [part["vision_mrope_ids"] for part in parts]
    joined["vision_timesteps"] = torch.full((sum(p["num_noisy_vision_tokens"] for p in parts),), 1000 * NOISE)
    if sounds:
        sound, action = noise(3, SOUND), noise(ACTIONS, 5)
        part = make._prepare_sound_segment(on, sound, offset, 25.0, end, "cpu")
        joined |= part | {"sound_tokens": [sound], "sound_timesteps": torch.full((SOUND,), 1000 * NOISE)}
        joined["position_ids"].append(part["sound_mrope_ids"])
        part = make._prepare_action_segment(on, action, [0], offset, 24.0, end + SOUND, "cpu")
        joined |= part | {"action_tokens": [action], "action_timesteps": torch.full((ACTIONS - 1,), 1000 * NOISE)}
        joined |= {"action_domain_ids": [torch.tensor([1])]}
        joined["position_ids"].append(part["action_mrope_ids"])
    joined["position_ids"] = torch.cat(joined["position_ids"], dim=1)
    joined["sequence_length"] = joined["position_ids"].shape[1]
    taken = inspect.signature(transformer.forward).parameters
    return {name: value for name, value in (arguments | joined).items() if name in taken}


H3: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "hidden_size": 24,
    "num_layers": LAYERS,
    "num_refiner_layers": 1,
    "ffn_dim": 32,
    "in_channels": 4,
    "audio_in_channels": 3,
    "text_dim": 10,
    "freq_dim": 16,
    "time_embed_hidden_dim": 16,
    "time_embed_dim": 12,
    "rope_freq_dim": 2,
}
COSMOS3: dict[str, Any] = {
    "head_dim": 12,
    "hidden_size": 24,
    "intermediate_size": 32,
    "latent_channel": 4,
    "patch_latent_dim": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": LAYERS,
    "vocab_size": 20,
    "rope_axes_dim": (2, 2, 2),
}
OMNI = COSMOS3 | {"sound_gen": True, "sound_dim": 3, "action_gen": True, "action_dim": 5}
NEMOTRON = COSMOS3 | {"hidden_act": "relu2", "qk_norm_for_text": False, "use_und_k_norm_for_gen": True}
REFERENCES = 2 * 3 + 2 * 3 * 2 + 2 * (2 + 3)  # an image of 2 x 3 tokens, a video of 2 x 3 x 2, sound of two channels
CASES = {
    "h3": Case("MiniMaxH3Transformer3DModel", H3, h3, lambda view: (2 * SOUND, 0)),
    "h3-key-frames": Case(
        "MiniMaxH3Transformer3DModel",
        H3,
        h3,
        lambda view: (2 * view[1] * view[2] + 2 * SOUND, 0),
        {"anchors": ("first", "last")},
    ),
    "h3-references": Case(
        "MiniMaxH3Transformer3DModel", H3, h3, lambda view: (REFERENCES + 2 * SOUND, 0), {"refers": True}
    ),
    "cosmos3": Case("Cosmos3OmniTransformer", COSMOS3, cosmos3, lambda view: (0, 0)),
    "cosmos3-omni": Case("Cosmos3OmniTransformer", OMNI, cosmos3, lambda view: (0, SOUND + ACTIONS), {"sounds": True}),
    "cosmos3-nemotron": Case("Cosmos3OmniTransformer", NEMOTRON, cosmos3, lambda view: (0, 0)),
    "cosmos3-controls": Case(
        "Cosmos3OmniTransformer",
        COSMOS3,
        cosmos3,
        lambda view: (2 * (view[0] + 1) * view[1] * view[2], 0),
        {"controls": 2},
    ),
}
EACH = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
ONE_EACH = pytest.mark.parametrize("case", [CASES["h3"], CASES["cosmos3-omni"]], ids=["h3", "cosmos3-omni"])
IN_BATCHES = pytest.mark.parametrize(
    ("case", "batch"),
    [(case, batch) for case in CASES.values() for batch in ((1, 2) if case.arguments is h3 else (1,))],
    ids=[f"{name}-batch{n}" for name, case in CASES.items() for n in ((1, 2) if case.arguments is h3 else (1,))],
)


def call(
    case: Case, transformer: Any, view: View = (3, 5, 7), text: int = TEXT, batch: int = 1, **changes: Any
) -> torch.Tensor:
    """One forward pass with random inputs, the same for the same sizes; video, sound and action in one row."""
    generator, dtype = torch.Generator().manual_seed(2), next(transformer.parameters()).dtype

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    arguments = case.arguments(transformer, view, text, batch, noise, **case.options)
    return row(transformer(**(arguments | changes), return_dict=False))


def row(out: Any) -> torch.Tensor:
    if isinstance(out, torch.Tensor):
        return out.flatten()
    return torch.cat([row(part) for part in out if part is not None])


def attentions(transformer: Any) -> Mapping[str, Any]:
    return adapter_for(transformer).self_attentions(transformer)


@contextmanager
def masked(transformer: Any, pattern: Pattern, *grids: VideoGrid) -> Iterator[None]:
    """The oracle: attention over as many keys as a grid has tokens gets that grid's mask."""
    masks = {grid.tokens: pattern.plan(grid).token_mask() for grid in grids}
    module: Any = sys.modules[type(transformer).__module__]
    original, seen = module.dispatch_attention_fn, set()

    def with_mask(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **settings: Any) -> torch.Tensor:
        if key.shape[1] in masks:
            seen.add(key.shape[1])
            # The queries are the last tokens: all, or in Cosmos 3 all but the text.
            settings["attn_mask"] = masks[key.shape[1]][:, :, -query.shape[1] :]
        out: torch.Tensor = original(query, key, value, **settings)
        return out

    module.dispatch_attention_fn = with_mask
    try:
        yield
    finally:
        module.dispatch_attention_fn = original
    assert seen == masks.keys()


def gradients(case: Case, transformer: Any, **changes: Any) -> dict[str, torch.Tensor]:
    transformer.zero_grad()
    call(case, transformer, **changes).square().mean().backward()
    return {name: p.grad.clone() for name, p in transformer.named_parameters() if p.grad is not None}


def assert_same_gradients(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys() and any("to_q" in name for name in found)
    for name, wanted in expected.items():
        atol = 1e-4 * float(wanted.abs().max()) + 1e-8
        torch.testing.assert_close(found[name], wanted, rtol=1e-3, atol=atol, msg=name)


def low_precision(transformer: Any) -> Any:
    """The transformer in bfloat16, but for what `from_pretrained` keeps in float32."""
    transformer.to(torch.bfloat16)
    for name, module in transformer.named_modules():
        if any(part in name.split(".") for part in transformer._keep_in_fp32_modules):
            module.float()
    return transformer


# What both compute


@torch.no_grad()
@IN_BATCHES
def test_dense_pattern_is_the_untouched_model(case: Case, batch: int) -> None:
    transformer = case.build()
    expected = call(case, transformer, batch=batch)
    with sparsify(transformer, Dense()) as run:
        assert torch.equal(call(case, transformer, batch=batch), expected)
    calls = run.report().calls
    assert [(c.layer, c.tokens, c.density) for c in calls] == [(i, case.grid().tokens, 1.0) for i in range(LAYERS)]


@IN_BATCHES
def test_a_pattern_that_keeps_all_is_the_untouched_model_to_rounding(case: Case, batch: int) -> None:
    transformer = case.build()
    expected, wanted = call(case, transformer, batch=batch), gradients(case, transformer, batch=batch)
    for impl in ("cpu", "reference"):
        with sparsify(transformer, KEEPS_ALL, impl=impl, strict=True):
            torch.testing.assert_close(call(case, transformer, batch=batch), expected, rtol=1e-4, atol=1e-4)
            assert_same_gradients(gradients(case, transformer, batch=batch), wanted)


@torch.no_grad()
@IN_BATCHES
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_a_sparse_model_is_the_model_under_the_expanded_mask(case: Case, view: View, batch: int) -> None:
    transformer, grid = case.build(), case.grid(view)
    with masked(transformer, SPARSE, grid):
        expected = call(case, transformer, view, batch=batch)
    for impl in ("cpu", "reference"):
        with sparsify(transformer, SPARSE, impl=impl, strict=True) as run:
            found = call(case, transformer, view, batch=batch)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    report, block_map = run.report(), SPARSE.plan(grid)
    assert {c.tokens for c in report.calls} == {grid.tokens} and report.sparse_calls == LAYERS
    assert report.density == pytest.approx(block_map.density)
    assert report.token_density == pytest.approx(float(block_map.token_mask().double().mean()))
    if block_map.density < 0.9:
        untouched = call(case, transformer, view, batch=batch)
        assert (untouched - expected).abs().max() > 1e-3, "the mask changes nothing, so this test shows nothing"


@torch.no_grad()
@IN_BATCHES
def test_tokens_around_the_video_are_exact(case: Case, batch: int) -> None:
    transformer, grid, seen = case.build(), case.grid(), []
    attention = next(iter(attentions(transformer).values()))  # later layers see what the video has become

    def keep(module: Any, args: Any, out: Any) -> None:
        seen.append(torch.cat(out)[None] if isinstance(out, tuple) else out)

    hook = attention.register_forward_hook(keep)
    call(case, transformer, batch=batch)
    with sparsify(transformer, SPARSE, strict=True):
        call(case, transformer, batch=batch)
    hook.remove()
    parts = (grid.prefix, grid.video_tokens, grid.suffix)
    before, video, after = zip(*(x.split(parts, dim=1) for x in seen), strict=True)
    torch.testing.assert_close(*before, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(*after, rtol=1e-4, atol=1e-5)
    assert (video[0] - video[1]).abs().max() > 1e-3


@torch.no_grad()
@EACH
def test_flops_are_those_of_the_heads_which_are_wider_than_the_model(case: Case) -> None:
    transformer, grid = case.build(), case.grid()
    with sparsify(transformer, StepSchedule(SPARSE, dense_layers=(0,))) as run:
        call(case, transformer)
    width = case.config["num_attention_heads"] * case.config.get("attention_head_dim", case.config.get("head_dim"))
    assert width != case.config["hidden_size"]
    assert {c.dense_flops for c in run.report().calls} == {4 * grid.tokens**2 * width}


@EACH
def test_gradients_are_those_under_the_expanded_mask(case: Case) -> None:
    transformer = case.build()
    with masked(transformer, SPARSE, case.grid()):
        expected = gradients(case, transformer)
    for impl in ("cpu", "reference"):
        with sparsify(transformer, SPARSE, impl=impl, strict=True):
            assert_same_gradients(gradients(case, transformer), expected)


@ONE_EACH
def test_gradient_checkpointing(case: Case) -> None:
    transformer = case.build().train()
    with sparsify(transformer, SPARSE, strict=True):
        expected = gradients(case, transformer)
        transformer.enable_gradient_checkpointing()
        assert_same_gradients(gradients(case, transformer), expected)


@torch.no_grad()
@EACH
@pytest.mark.parametrize("pattern", [SPARSE, KEEPS_ALL], ids=["sparse", "keeps-all"])
def test_bfloat16(case: Case, pattern: Pattern) -> None:
    transformer = case.build()
    with masked(transformer, pattern, case.grid()):
        exact = call(case, transformer)
        plain = call(case, low_precision(transformer))
    with sparsify(transformer, pattern, strict=True):
        found = call(case, transformer)
    assert found.dtype == plain.dtype
    error, allowed = ((x.float() - exact).abs().max() for x in (found, plain))
    assert error <= 2 * allowed + torch.finfo(torch.bfloat16).eps * exact.abs().max()


@torch.no_grad()
@EACH
def test_texts_and_sizes_in_turn_use_their_own_maps_and_restore_puts_back_the_very_objects(case: Case) -> None:
    transformer = case.build()
    modules = attentions(transformer).values()
    originals = [module.processor for module in modules]
    sizes = [(VIEWS["3x5x7"], 9), (VIEWS["3x5x7"], 4), (VIEWS["one-frame"], 6), (VIEWS["3x5x7"], 9)]
    with sparsify(transformer, SPARSE, strict=True) as run:
        found = [call(case, transformer, *size) for size in sizes]
    assert all(module.processor is original for module, original in zip(modules, originals, strict=True))
    assert not transformer._forward_pre_hooks
    assert {c.tokens: c.calls for c in run.report().calls} == {
        case.grid(*size).tokens: sizes.count(size) for size in sizes
    }
    for size, out in zip(sizes, found, strict=True):
        with masked(transformer, SPARSE, case.grid(*size)):
            torch.testing.assert_close(out, call(case, transformer, *size), rtol=1e-4, atol=1e-4)


@torch.no_grad()
@ONE_EACH
def test_processors_the_diffusers_way(case: Case) -> None:
    transformer = case.build()
    before = dict(transformer.attn_processors)
    with masked(transformer, SPARSE, case.grid()):
        expected = call(case, transformer)
    ours = attn_processors(transformer, SPARSE)
    assert sum(ours[key] is not before[key] for key in before) == LAYERS  # the refiner of H3's text has no video
    transformer.set_attn_processor(ours)
    torch.testing.assert_close(call(case, transformer), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("when", ["before", "after"])
def test_fused_projections_of_h3(when: str) -> None:
    case = CASES["h3"]
    transformer = case.build()
    with masked(transformer, SPARSE, case.grid()):
        expected = call(case, transformer)

    def fuse() -> None:
        transformer.fuse_qkv_projections()
        for attention in attentions(transformer).values():  # the projections that it made one of stay, unused
            torch.nn.init.zeros_(attention.to_q.weight)

    if when == "before":
        fuse()
    with sparsify(transformer, SPARSE, strict=True):
        if when == "after":
            fuse()
        found = call(case, transformer)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


# What cannot be sparse


def assert_runs_dense(case: Case, transformer: Any, reason: str, **changes: Any) -> None:
    expected = call(case, transformer, **changes)
    with sparsify(transformer, SPARSE) as run:
        assert torch.equal(call(case, transformer, **changes), expected)
        call(case, transformer)
    (found, count), *others = run.report().dense_reasons.items()
    assert not others and reason in found and count == run.report().sparse_calls == LAYERS
    with sparsify(transformer, SPARSE, strict=True), pytest.raises(NotImplementedError, match=reason):
        call(case, transformer, **changes)


@torch.no_grad()
def test_video_of_h3_in_no_raster_order_runs_dense() -> None:
    case, grid = CASES["h3"], CASES["h3"].grid()
    transformer = case.build()
    positions = torch.rand(grid.tokens, 3)
    assert_runs_dense(case, transformer, "of no grid of frames x height x width", position_ids=positions)


@torch.no_grad()
def test_video_of_cosmos3_in_pieces_or_among_the_text_runs_dense() -> None:
    case = CASES["cosmos3"]
    transformer, indices = case.build(), torch.arange(TEXT, TEXT + 105)
    assert_runs_dense(case, transformer, "in no unbroken run", vision_sequence_indexes=indices.flip(0))
    assert_runs_dense(case, transformer, "among the text, where attention is causal", und_len=TEXT + 1)


@torch.no_grad()
@ONE_EACH
def test_context_parallelism_runs_dense(case: Case) -> None:
    transformer = case.build()
    with sparsify(transformer, SPARSE, strict=True):
        next(iter(attentions(transformer).values())).processor._parallel_config = "ulysses"
        with pytest.raises(NotImplementedError, match="context parallelism is on"):
            call(case, transformer)


@torch.no_grad()
def test_context_parallelism_of_cosmos3_is_outside_the_model() -> None:
    case = CASES["cosmos3"]
    transformer = case.build()
    transformer._cp_shard_fn = lambda *parts: parts
    with sparsify(transformer, SPARSE) as run:
        call(case, transformer)
    assert run.report().dense_reasons == {"context parallelism is on": LAYERS}


@torch.no_grad()
def test_a_mask_of_h3_runs_dense() -> None:
    case = CASES["h3"]
    transformer, tokens = case.build(), case.grid().tokens
    attention = next(iter(attentions(transformer).values()))
    arguments = torch.randn(1, tokens, 24), None, torch.rand(1, 1, tokens, tokens) > 0.5
    expected = attention(*arguments)
    with sparsify(transformer, SPARSE) as run:
        call(case, transformer)
        run.reset()
        assert torch.equal(attention(*arguments), expected)
    assert run.report().dense_reasons == {"the call has an attention mask": 1}


# Noise, and the pipelines


class Spy(Dense):
    """Dense, and notes the contexts it is asked for."""

    seen: list[Any]

    def is_dense(self, context: Any) -> bool:
        self.seen.append(context)
        return True


def contexts(pipe: Any, arguments: dict[str, Any]) -> list[Any]:
    """The context of the first layer in each call of a pipeline."""
    spy = Spy()
    object.__setattr__(spy, "seen", [])
    with sparsify(pipe, spy):
        pipe(**arguments)
    return [context for context in spy.seen if context.layer == 0]


def h3_pipeline() -> tuple[Any, dict[str, Any], list[VideoGrid]]:
    """The denoising of diffusers' pipeline, its arguments, and the grids of its calls: five seconds in 96 x 160."""
    pipe = h3_blocks.MiniMaxH3CoreDenoiseStep().init_pipeline()
    sound, video = diffusers.MiniMaxH3Scheduler(shift=3.0), diffusers.MiniMaxH3Scheduler()
    transformer = CASES["h3"].build(in_channels=24, audio_in_channels=32)
    pipe.update_components(transformer=transformer, scheduler=video, audio_scheduler=sound)
    arguments = {"prompt_embeds": torch.ones(1, TEXT, 10), "text_token_tags": torch.ones(TEXT).long()}
    arguments |= {"height": 96, "width": 160, "num_frames": 124, "num_inference_steps": 5}
    return pipe, arguments, [VideoGrid(37, 3, 5, prefix=TEXT + 2 * 207)]


def cosmos3_pipeline() -> tuple[Any, dict[str, Any], list[VideoGrid]]:
    """With sound and classifier-free guidance: two calls in a step, with texts of different lengths."""
    pipe = cosmos3_blocks.Cosmos3VisionSoundCoreDenoiseStep().init_pipeline()
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipe.update_components(transformer=CASES["cosmos3-omni"].build(), scheduler=scheduler)
    arguments = {
        "cond_input_ids": list(range(TEXT)),
        "uncond_input_ids": [5, 6],
        "num_frames": 25,
        "height": 80,
        "width": 112,
    }
    arguments |= {"num_inference_steps": 4}
    # Latents of 7 x 5 x 7 and a second of sound.
    return pipe, arguments, [VideoGrid(7, 3, 4, prefix=text, suffix=27) for text in (TEXT, 2)]


@torch.no_grad()
@pytest.mark.parametrize("build", [h3_pipeline, cosmos3_pipeline])
def test_pipelines_are_those_under_the_expanded_mask(build: Callable[..., Any]) -> None:
    pipe, arguments, grids = build()
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator()

    def latents() -> torch.Tensor:
        return row(pipe(**arguments, generator=generator.manual_seed(4), output="latents"))

    with masked(pipe.transformer, SPARSE, *grids):
        expected = latents()
    with sparsify(pipe, SPARSE, strict=True) as run:
        torch.testing.assert_close(latents(), expected, rtol=1e-3, atol=1e-3)
    calls = run.report().calls
    assert {c.tokens for c in calls} == {grid.tokens for grid in grids}
    assert sorted({c.step for c in calls}) == [0, 1, 2, 3] and len(calls) == 4 * len(grids) * LAYERS
    with sparsify(pipe, StepSchedule(SPARSE, dense_last_steps=1)) as run:
        latents()
    assert {c.step for c in run.report().calls if c.reason} == {3}


@torch.no_grad()
@pytest.mark.parametrize("build", [h3_pipeline, cosmos3_pipeline])
def test_the_noise_is_that_of_the_scheduler(build: Callable[..., Any]) -> None:
    pipe, arguments, grids = build()
    pipe.set_progress_bar_config(disable=True)
    found = contexts(pipe, arguments)
    sigmas = pipe.scheduler.sigmas[:4].repeat_interleave(len(grids))
    assert [context.sigma for context in found] == pytest.approx(sigmas.tolist(), abs=1e-3)
    assert [(c.step, c.steps, c.branch) for c in found] == [(i, 4, b) for i in range(4) for b in range(len(grids))]


@torch.no_grad()
def test_noise_is_that_of_the_video_or_else_of_what_has_some() -> None:
    transformer = CASES["h3-references"].build()
    noise = torch.zeros
    arguments = h3(transformer, (3, 5, 7), TEXT, 1, noise, refers=True)
    assert adapter_for(transformer).timestep(transformer, arguments) == pytest.approx(1000 * NOISE)
    transformer = CASES["cosmos3-omni"].build()
    arguments = cosmos3(transformer, (3, 5, 7), TEXT, 1, noise, sounds=True) | {"vision_timesteps": torch.zeros(0)}
    assert adapter_for(transformer).timestep(transformer, arguments) == pytest.approx(1000 * NOISE)
