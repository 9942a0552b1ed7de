"""Rotary positions beyond the trained length, against the formula in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel, SkyReelsV2Transformer3DModel, WanTransformer3DModel

from vidsparse import extend_positions
from vidsparse.generation.positions import intrinsic_index

THETA, HEAD = 10000.0, 24
TIME = HEAD - 4 * (HEAD // 6)


def tiny(cls: Any = WanTransformer3DModel, patch: int = 1, **changes: Any) -> Any:
    settings = dict(
        patch_size=(patch, 2, 2),
        num_attention_heads=1,
        attention_head_dim=HEAD,
        in_channels=2,
        out_channels=2,
        text_dim=4,
        freq_dim=8,
        ffn_dim=8,
        num_layers=1,
        rope_max_seq_len=16,
    )
    return cls(**(settings | changes)).eval()


def expected(positions: int, lowered: dict[int, float] | None = None) -> torch.Tensor:
    """Angles [positions, head_dim / 2] of time, height and width; `lowered` changes frequencies of time."""
    time = [(lowered or {}).get(j, THETA ** (-2 * j / TIME)) for j in range(TIME // 2)]
    side = [THETA ** (-2 * j / (2 * (HEAD // 6))) for j in range(HEAD // 6)]
    frequencies = torch.tensor([*time, *side, *side], dtype=torch.float64)
    return torch.arange(positions, dtype=torch.float64)[:, None] * frequencies


def assert_positions(rope: Any, angles: torch.Tensor) -> None:
    for table, of in ((rope.freqs_cos, torch.cos), (rope.freqs_sin, torch.sin)):
        torch.testing.assert_close(table.double(), of(angles).repeat_interleave(2, 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("cls", [WanTransformer3DModel, SkyReelsV2Transformer3DModel])
def test_plain_positions_go_on(cls: Any) -> None:
    transformer = tiny(cls)
    assert_positions(transformer.rope, expected(16))
    extend_positions(transformer, frames=16, trained_frames=5)
    assert_positions(transformer.rope, expected(16))
    extend_positions(transformer, frames=41, trained_frames=5)
    assert_positions(transformer.rope, expected(41))


def test_a_longer_video_runs_when_the_table_is_longer() -> None:
    transformer = tiny()
    hidden, text = torch.randn(1, 2, 19, 4, 4), torch.randn(1, 3, 4)
    with pytest.raises(RuntimeError):
        transformer(hidden, torch.tensor([500.0]), text)
    extend_positions(transformer, frames=19, trained_frames=5)
    assert transformer(hidden, torch.tensor([500.0]), text)[0].isfinite().all()


@pytest.mark.parametrize(
    ("frames", "trained_frames", "lowered"),
    [
        # The periods of time are 6.3, 62.8, 628 and 6283 frames.
        (80, 13, {1: 0.9 * 2 * math.pi / 80}),
        (57, 13, {1: 0.9 * 2 * math.pi / 57}),
        (56, 13, {}),
        (9, 2, {0: 0.9 * 2 * math.pi / 9}),
    ],
)
def test_riflex_lowers_one_frequency(frames: int, trained_frames: int, lowered: dict[int, float]) -> None:
    transformer = tiny()
    periods = 2 * math.pi * THETA ** (torch.arange(TIME // 2) * 2 / TIME)
    if lowered:
        (index, frequency) = next(iter(lowered.items()))
        assert index == int((periods / (2 * trained_frames)).log().abs().argmin())
        assert 2 * math.pi / frequency > max(frames, float(periods[index]))
    extend_positions(transformer, frames, trained_frames, kind="riflex")
    assert_positions(transformer.rope, expected(max(16, frames), lowered))


def test_yarn_lowers_what_turns_too_little() -> None:
    """In 13 of 52 frames the frequencies turn 2.1, 0.21, 0.02 and 0.002 times; in 9 of 36 the first 1.43 times."""
    slower = {j: THETA ** (-2 * j / TIME) / 4 for j in range(1, 4)}
    extend_positions(transformer := tiny(), frames=52, trained_frames=13, kind="yarn")
    assert_positions(transformer.rope, expected(52, slower))
    kept = (9 / (2 * math.pi) - 0.5) / 1.5
    extend_positions(transformer, frames=36, trained_frames=9, kind="yarn")
    assert_positions(transformer.rope, expected(36, {0: kept + (1 - kept) / 4, **slower}))
    extend_positions(transformer, frames=9, trained_frames=13, kind="yarn")  # not longer
    assert_positions(transformer.rope, expected(16))


@pytest.mark.parametrize(
    ("dim", "theta", "trained_frames", "published"),
    [(16, 256.0, 33, 4), (16, 10000.0, 13, 2), (44, 10000.0, 21, 6)],
    ids=["HunyuanVideo", "CogVideoX", "Wan 2.1"],
)
def test_the_intrinsic_frequency_is_the_published_one(
    dim: int, theta: float, trained_frames: int, published: int
) -> None:
    frequencies = theta ** (-torch.arange(0, dim, 2).double() / dim)
    assert intrinsic_index(frequencies, trained_frames) + 1 == published


def test_frames_are_counted_in_patches() -> None:
    extend_positions(transformer := tiny(patch=2), frames=160, trained_frames=26, kind="riflex")
    assert_positions(transformer.rope, expected(80, {1: 0.9 * 2 * math.pi / 80}))


def test_restore_puts_back_the_very_tables() -> None:
    rope = (transformer := tiny()).rope
    before = rope.freqs_cos, rope.freqs_sin
    changed = extend_positions(transformer, 80, 13, "riflex")
    assert rope.freqs_cos is not before[0] and rope.freqs_cos.shape == (80, HEAD)
    changed.restore()
    changed.restore()
    assert rope.freqs_cos is before[0] and rope.freqs_sin is before[1]
    assert not transformer.state_dict().keys() & {"rope.freqs_cos", "rope.freqs_sin"}, "positions are no weights"


@pytest.mark.parametrize("kind", ["riflex", "yarn"])
def test_plain_undoes_the_others(kind: str) -> None:
    extend_positions(transformer := tiny(), 80, 13, kind)
    extend_positions(transformer, 13, 13)
    assert_positions(transformer.rope, expected(16))


def test_the_tables_keep_their_dtype() -> None:
    rope = (transformer := tiny().to(torch.float64)).rope
    changed = extend_positions(transformer, 41, 13, "riflex")
    assert rope.freqs_cos.dtype == rope.freqs_sin.dtype == torch.float64
    transformer.to(torch.float32)
    changed.restore()
    assert rope.freqs_cos.dtype == torch.float32


def test_models_that_compute_their_positions() -> None:
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=2,
        out_channels=2,
        num_attention_heads=1,
        attention_head_dim=8,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=4,
        pooled_projection_dim=4,
        rope_axes_dim=(4, 2, 2),
    )
    extend_positions(transformer, 41, 13).restore()
    with pytest.raises(NotImplementedError, match=r"HunyuanVideoTransformer3DModel has none; use kind='plain'"):
        extend_positions(transformer, 41, 13, "riflex")
    with pytest.raises(NotImplementedError, match=r"Linear has none"):
        extend_positions(torch.nn.Linear(1, 1), 41, 13, "riflex")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [((41, 13, "ntk"), "choose one of plain, riflex"), ((0, 13), "frames=0 .* at least 1"), ((4, -1), "=-1 must be")],
    ids=str,
)
def test_bad_arguments(arguments: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        extend_positions(tiny(), *arguments)
