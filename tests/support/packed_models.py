"""Tiny random MiniMax-H3 and Cosmos 3, a forward pass of each, and the oracle.

Sequences are packed by diffusers' own pipelines. The oracle is diffusers' own processor whose attention of the video
gets the block map, expanded to tokens, as its mask.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch

from vidsparse import Pattern, Radial, VideoGrid

before_denoise: Any = pytest.importorskip("diffusers.modular_pipelines.minimax_h3.before_denoise")
h3_blocks: Any = pytest.importorskip("diffusers.modular_pipelines.minimax_h3.modular_blocks_minimax_h3")
cosmos3_blocks: Any = pytest.importorskip("diffusers.modular_pipelines.cosmos.modular_blocks_cosmos3")

SPARSE = Radial(density=0.3, tile=(1, 4, 4))
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
