"""The programs of `examples/` that combine sparse attention with something else run, and do what they say."""

from __future__ import annotations

import contextlib
import io
import os
from importlib import import_module
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import pytest
import torch
from command_line import tiny_pipeline
from diffusers import WanPipeline
from gloo import free_port, on_ranks
from needs import needs_weights
from pages import ROOT
from small_videos import leaves_pipes
from torch import distributed
from twins import ignores_warnings

from vidsparse import load_gates

pytestmark = [ignores_warnings, leaves_pipes]
tiny = pytest.fixture(scope="module")(tiny_pipeline)
SMALL = "--frames", "5", "--steps", "4"


def run(name: str, *arguments: str) -> None:
    """Run the program of this name; its folder is on the path."""
    import_module(name).main([*arguments, "--out", "out.mp4"])


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.syspath_prepend(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def frames() -> int:
    return len(imageio.mimread("out.mp4", format="FFMPEG", memtest=False))  # type: ignore[arg-type]


@needs_weights
def test_a_cache_skips_and_the_rest_is_sparse(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("with_a_cache", "--frames", "5", "--steps", "8", "--threshold", "2")
    printed = capsys.readouterr().out
    assert "attention calls sparse" in printed and "by FirstBlockCache" in printed and frames() == 5


@needs_weights
def test_compiled_blocks(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("with_compile", *SMALL, "--backend", "eager")
    printed = capsys.readouterr().out
    assert "12 of 48 attention calls sparse" in printed and frames() == 5


@needs_weights
def test_a_lora_brings_its_pattern(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("with_a_lora", *SMALL)
    printed = capsys.readouterr().out
    assert "plain positions" in printed and "SlidingClip(" in printed and frames() == 5


def test_a_checkpoint_with_gates(tiny: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = WanPipeline.from_pretrained(tiny)
    width = pipe.transformer.config.num_attention_heads * pipe.transformer.config.attention_head_dim
    parts = {"weight": torch.eye(width), "bias": torch.zeros(width)}
    gates = {f"blocks.{i}.to_gate_compress.{name}": part for i in range(2) for name, part in parts.items()}
    load_gates(pipe.transformer, gates)
    pipe.save_pretrained("gated")
    run("foreign_checkpoint", "--model", "gated", *SMALL, "--height", "32", "--width", "32", "--density", "0.5")
    printed = capsys.readouterr().out
    assert "VideoSparse(density=0.5" in printed and "GatedCoarse" in printed and frames() == 5


def share(folder: str, port: int) -> str:
    """Runs as torchrun starts a process; returns what it printed."""
    rank, ranks = distributed.get_rank(), distributed.get_world_size()
    distributed.destroy_process_group()
    os.chdir(folder)
    numbers = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank, "MASTER_PORT": port}
    os.environ |= {"MASTER_ADDR": "127.0.0.1"} | {name: str(number) for name, number in numbers.items()}
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        run("with_ulysses", "--frames", "9", "--steps", "4")
    return out.getvalue()


@needs_weights
def test_processes_share_a_video(here: Path) -> None:
    first, *others = on_ranks(3, share, str(here), free_port())
    assert "attention calls sparse" in first and others == ["", ""] and frames() == 9


def test_torchrun_starts_the_processes(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(SystemExit):
        run("with_ulysses")
    assert "torchrun --standalone --nproc-per-node 3 examples/with_ulysses.py" in capsys.readouterr().err
