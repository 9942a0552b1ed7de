"""Chunks with kept keys and values are the whole model under a mask; the example prints what it measured."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from needs import needs_weights
from pages import ROOT
from small_videos import leaves_pipes
from tiny_wan import TEXT_TOKENS, tiny
from twins import ignores_warnings

from vidsparse import BlockMap, Dense, LightForcing, Pattern, PerHead, Radial, StepSchedule, TopBlocks
from vidsparse.doctor.masked import intercepted

pytestmark = [ignores_warnings, leaves_pipes]
KEPT, NEW, HEIGHT, WIDTH = 4, 2, 6, 10  # frames of two chunks and of a third, and the sides of their latents
TOKENS = HEIGHT // 2 * (WIDTH // 2)  # of a frame
SPARSE = LightForcing(0.4, 0.4, frames=6, chunk=2, keep_frames=2, tile=(1, 2, 2))


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "examples")
    return import_module("chunked_generation")


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    """Latents of all three chunks, and text."""
    return torch.randn(2, 4, KEPT + NEW, HEIGHT, WIDTH), torch.randn(2, TEXT_TOKENS, 16)


class Noted(Pattern):
    """Another pattern, whose maps it notes."""

    def __init__(self, pattern: Pattern):
        self.pattern = pattern
        self.maps: list[BlockMap] = []

    def plan(self, *arguments: Any) -> Any:
        return self.pattern.plan(*arguments)

    def select(self, *arguments: Any) -> Any:
        found: Any = self.pattern.select(*arguments)
        if arguments[2].tokens > 1:  # more than the trial at the start
            self.maps.append(found)
        return found

    def is_dense(self, context: Any) -> bool:
        return self.pattern.is_dense(context)


@torch.no_grad()
def chunked(example: Any, transformer: Any, pattern: Pattern, latents: torch.Tensor, text: torch.Tensor) -> Any:
    """The output for the third chunk at timestep 500, after two that are kept."""
    with example.ChunkedKV(transformer, pattern) as chunks:
        for part in latents[:, :, :KEPT].split(NEW, dim=2):
            chunks.keep(part, text)
        assert chunks.frames == KEPT
        return chunks(latents[:, :, KEPT:], torch.tensor(500.0), text)


@torch.no_grad()
def whole(transformer: Any, latents: torch.Tensor, text: torch.Tensor, maps: Sequence[BlockMap] = ()) -> Any:
    """The same by the model itself: all frames at once, a timestep for each token, and a mask of what chunks see.

    `maps` has those of each layer in the last chunks, those of the third chunk last; chunks without maps see all.
    """
    frame = torch.arange(KEPT + NEW).repeat_interleave(TOKENS)
    causal = frame[:, None] // NEW >= frame // NEW
    masks = [causal.repeat(2, 2, 1, 1) for _ in transformer.blocks]
    left_maps = iter(maps)
    for number in range(3 - len(maps) // len(masks), 3):
        for mask in masks:
            rows = slice(number * NEW * TOKENS, (number + 1) * NEW * TOKENS)
            mask[:, :, rows, : rows.stop] = next(left_maps).token_mask()
    left = iter(masks)
    timestep = torch.where(frame < KEPT, 0.0, 500.0).expand(2, -1)
    attentions = [block.attn1 for block in transformer.blocks]
    with intercepted(attentions, lambda attention, *_: attention(next(left))):
        return transformer(latents, timestep, text, return_dict=False)[0][:, :, KEPT:]


def test_chunks_are_the_whole_video_under_a_mask(example: Any, inputs: tuple[torch.Tensor, torch.Tensor]) -> None:
    transformer = tiny()
    expected = whole(transformer, *inputs)
    for pattern in (Dense(), LightForcing(1.0, 1.0), StepSchedule(Dense())):
        torch.testing.assert_close(chunked(example, transformer, pattern, *inputs), expected, rtol=1e-4, atol=1e-5)
    unlike = chunked(example, transformer, SPARSE, *inputs)
    assert (unlike - expected).abs().max() > 1e-2, "what is dropped counts"


@pytest.mark.parametrize("sparse", [SPARSE, Radial(density=0.3, tile=(1, 2, 2))], ids=["LightForcing", "Radial"])
def test_sparse_chunks_are_the_whole_video_under_their_maps(
    example: Any, inputs: tuple[torch.Tensor, torch.Tensor], sparse: Pattern
) -> None:
    transformer, pattern = tiny(), Noted(sparse)
    found = chunked(example, transformer, pattern, *inputs)
    chunks = [(m.query_grid.frames, m.key_grid.frames) for m in pattern.maps]
    assert chunks[-4:] == [(2, 4), (2, 4), (2, 6), (2, 6)] and set(chunks[:-4]) <= {(2, 2)}  # a first one, of Radial
    torch.testing.assert_close(found, whole(transformer, *inputs, pattern.maps), rtol=1e-4, atol=1e-5)


def test_processors_come_back(example: Any, inputs: tuple[torch.Tensor, torch.Tensor]) -> None:
    transformer = tiny()
    before = [block.attn1.processor for block in transformer.blocks]
    with pytest.raises(RuntimeError), example.ChunkedKV(transformer, SPARSE):
        raise RuntimeError
    assert all(block.attn1.processor is old for block, old in zip(transformer.blocks, before, strict=True))


@pytest.mark.parametrize("pattern", [TopBlocks(density=0.3), PerHead((Radial(density=0.3),), (0,))], ids=repr)
def test_patterns_without_one_map_for_two_grids_are_refused(example: Any, pattern: Pattern) -> None:
    with pytest.raises(
        ValueError, match=r"gives no single map for a chunk and the frames before it; take LightForcing"
    ):
        example.ChunkedKV(tiny(), pattern)


def test_what_is_kept_is_in_memory_once(example: Any, inputs: tuple[torch.Tensor, torch.Tensor]) -> None:
    latents, text = inputs
    with torch.no_grad(), example.ChunkedKV(tiny(), SPARSE) as chunks:
        for part in latents.split(NEW, dim=2):
            chunks.keep(part, text)
            assert chunks.last == [None] * len(chunks.layers)
            assert {x.shape[1] for pair in chunks.kept for x in pair} == {chunks.frames * TOKENS}
        chunks(latents[:, :, :NEW], torch.tensor(500.0), text)
        assert {x.shape[1] for pair in chunks.last for x in pair} == {NEW * TOKENS}


@needs_weights
def test_the_program(
    example: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    denoised, right = set(), example.ChunkedKV.__call__

    def noted(chunks: Any, latents: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        denoised.add((chunks.transformer.config.patch_size[1], bool(timestep.any())))
        return right(chunks, latents, timestep, text)

    monkeypatch.setattr(example.ChunkedKV, "__call__", noted)
    example.main(["--chunks", "2", "--frames", "1", "--steps", "3", "--size", "64"])
    assert denoised >= {(2, True), (1, True)}, "each expert denoises, and not only keeps keys"
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split()[0] == "chunk" and first.endswith("the same") and second.endswith("dB")
    # 0.3 of the 8 tiles that the first expert sees in two denoising calls and one that keeps, and of the other's 32.
    density = (3 * 2 / 8 + 2 * 9 / 32) / 5
    assert float(first.split()[1]) == 1 and float(second.split()[1]) == pytest.approx(density, abs=1e-3)
    assert (tmp_path / "chunks.mp4").stat().st_size > 0
