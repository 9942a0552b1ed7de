"""The command line in an empty folder, on a random model. Each test file makes its fixtures of these functions."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UniPCMultistepScheduler, WanPipeline

from vidsparse.cli import app
from vidsparse.shapes import model as shapes

PROMPT = "a red circle moving left on a blue background"


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


def vidsparse_in_a_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the command line in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Outcome:
        with pytest.raises(SystemExit) as stop:
            app([str(a) for a in arguments], prog_name="vidsparse")
        code = stop.value.code
        return Outcome(code if isinstance(code, int) else 0, *capsys.readouterr())

    return run


def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random two-layer pipeline."""
    folder = tmp_path_factory.mktemp("model")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
        WanPipeline(
            tokenizer=shapes.build_tokenizer(),
            text_encoder=shapes.build_text_encoder(),
            transformer=shapes.build_transformer(num_layers=2),
            vae=shapes.build_vae(),
            scheduler=scheduler,
        ).save_pretrained(folder)
    return folder


def small_sample(tiny: Path) -> list[str]:
    """Options for a sample that takes a second."""
    return [
        "--model",
        str(tiny),
        "--frames",
        "9",
        "--height",
        "32",
        "--width",
        "48",
        "--steps",
        "2",
        "--dense-steps",
        "1",
    ]


def refused(done: Outcome, says: str) -> None:
    """Exit code 1, one line that says why, and no file."""
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert done.code == 1 and len(errors) == 1 and says in errors[0], done
    assert "Traceback" not in done.err and not done.out
    assert os.listdir() == [], "nothing is left behind"
