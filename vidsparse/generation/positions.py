"""Rotary positions in time for videos that are longer than those a model was trained with."""

from __future__ import annotations

import math
from typing import Any

import torch

KINDS = ("plain", "riflex", "yarn")
# Turns within the trained length: with fewer a frequency is lowered as much as videos are longer, with more it stays.
FEW_TURNS, MANY_TURNS = 0.5, 2.0


class ExtendedPositions:
    """Changed tables of a transformer's rotary positions; what `extend_positions` returns."""

    def __init__(self, rope: Any, tables: dict[str, torch.Tensor]):
        self._rope, self._before = rope, {name: getattr(rope, name) for name in tables}
        for name, table in tables.items():
            setattr(rope, name, table.to(self._before[name]))

    def restore(self) -> None:
        """Put back the original tables. Safe to call twice."""
        for name, table in self._before.items():
            setattr(self._rope, name, table.to(getattr(self._rope, name)))
        self._before.clear()


def extend_positions(
    transformer: torch.nn.Module, frames: int, trained_frames: int, kind: str = "plain"
) -> ExtendedPositions:
    """Let a transformer tell apart more frames than it was trained with.

    plain   positions go on as they are
    riflex  the time frequency that governs when a video repeats is lowered, so that `frames` are at most 0.9 of its
            period; a period that is long enough stays
    yarn    time frequencies with less than half a turn in `trained_frames` are lowered by trained_frames / frames, so
            that they meet no angle that is new to the model; the more one turns, the less it is lowered, as high ones
            tell neighbours apart

    All start from the transformer's own positions, whatever was called before: `kind="plain"` undoes the others. A
    model that was fine-tuned with one of these needs the `frames` of its training, also for shorter videos.

    Paper: Zhao et al., RIFLEx, arXiv 2502.15894. Code: thu-ml/RIFLEx at 2bff7fe, `riflex_utils.py`. Differences: the
    paper looks at videos for the frame at which they begin to repeat, and takes the frequency whose period is nearest.
    Here that frame is twice the trained length, and nearest is meant as a ratio: this gives the published index for
    HunyuanVideo (4) and CogVideoX (2), and the one in use for Wan 2.1 (6, of 51 frames). The frequency is lowered for
    more `frames` than 0.9 of its period, there for more than all of it.

    "yarn" is the NTK-by-parts interpolation of Peng et al., YaRN, arXiv 2309.00071, without its change of the softmax's
    temperature. There, for texts of thousands of tokens, frequencies stay from 32 turns on and are lowered in full
    under one. Videos have tens of latent frames, and their highest frequency turns once in six: here it is 2 and a
    half, the best of the bounds that were tried on `shapes` (benchmarks/NOTES.md, 19).

    Args:
        transformer: changed in place; call this before offloading.
        frames: latent frames of the longer videos.
        trained_frames: latent frames that the model was trained with.
        kind: "plain", "riflex" or "yarn".

    Returns:
        An `ExtendedPositions`; its `restore()` undoes the change.

    Raises:
        ValueError: another kind, or fewer than one frame.
        NotImplementedError: another kind than "plain" for a model without Wan's table of positions. "plain" changes
            nothing there: such models compute their positions anew for each video.
    """
    check_positions(transformer, kind)
    if min(frames, trained_frames) < 1:
        raise ValueError(f"frames={frames} and trained_frames={trained_frames} must be at least 1 latent frame")
    rope: Any = getattr(transformer, "rope", None)
    if not _has_table(transformer):
        return ExtendedPositions(rope, {})
    frames, trained_frames = (max(1, count // rope.patch_size[0]) for count in (frames, trained_frames))
    fresh = type(rope)(rope.attention_head_dim, rope.patch_size, max(rope.max_seq_len, frames))
    cos, sin = fresh.freqs_cos, fresh.freqs_sin
    # The first columns are time, two a frequency. At position 1 stands the frequency itself: at most one radian.
    columns = rope.attention_head_dim - 4 * (rope.attention_head_dim // 6)
    before = torch.atan2(sin[1, :columns:2], cos[1, :columns:2]).double()
    lowered = {"plain": _plain, "riflex": _riflex, "yarn": _yarn}[kind](before, frames, trained_frames)
    for index in (lowered < before).nonzero().flatten().tolist():
        angles = torch.arange(len(cos), dtype=torch.float64, device=cos.device)[:, None] * lowered[index]
        cos[:, 2 * index : 2 * index + 2] = angles.cos()
        sin[:, 2 * index : 2 * index + 2] = angles.sin()
    return ExtendedPositions(rope, {"freqs_cos": cos, "freqs_sin": sin})


def check_positions(transformer: torch.nn.Module, kind: str) -> None:
    """Refuse positions that a transformer, with weights or without, cannot have.

    Raises: see `extend_positions`.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is unknown; choose one of {', '.join(KINDS)}")
    if kind != "plain" and not _has_table(transformer):
        raise NotImplementedError(
            f"kind={kind!r} changes the table of rotary positions that Wan transformers have, and "
            f"{type(transformer).__name__} has none; use kind='plain'"
        )


def _has_table(transformer: torch.nn.Module) -> bool:
    rope = getattr(transformer, "rope", None)
    return all(hasattr(rope, name) for name in ("freqs_cos", "freqs_sin", "attention_head_dim", "max_seq_len"))


def intrinsic_index(frequencies: torch.Tensor, trained_frames: int) -> int:
    """Which time frequency, in radians a frame, governs when videos of a model repeat."""
    periods = 2 * math.pi / frequencies
    return int((periods / (2 * trained_frames)).log().abs().argmin())


def _plain(frequencies: torch.Tensor, frames: int, trained_frames: int) -> torch.Tensor:
    return frequencies


def _riflex(frequencies: torch.Tensor, frames: int, trained_frames: int) -> torch.Tensor:
    lowered = frequencies.clone()
    lowered[intrinsic_index(frequencies, trained_frames)] = 0.9 * 2 * math.pi / frames
    return lowered.minimum(frequencies)


def _yarn(frequencies: torch.Tensor, frames: int, trained_frames: int) -> torch.Tensor:
    turns = trained_frames * frequencies / (2 * math.pi)
    kept = ((turns - FEW_TURNS) / (MANY_TURNS - FEW_TURNS)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) * min(1.0, trained_frames / frames))
