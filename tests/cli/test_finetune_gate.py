"""`vidsparse finetune --train-gate`: what it refuses, and a gate that it trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command_line import refused, vidsparse_in_a_folder
from tiny_training import pipeline

from vidsparse.cli.finetune_gate import OF_LORA, gate_pattern
from vidsparse.cli.finetune_options import Finetuning
from vidsparse.finetune import Settings
from vidsparse.generation import pipeline as pipelines
from vidsparse.patterns import LearnedGate, StepSchedule

vidsparse = pytest.fixture(vidsparse_in_a_folder)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--rank", "8"], "--rank mean nothing for --train-gate, which trains no LoRA"),
        (["--start-from", "x", "--ema", "0.9"], "--start-from, --ema mean nothing"),
        (["--positions", "yarn"], "--positions mean nothing"),
        (
            ["--pattern", "top-blocks"],
            "--train-gate trains learned-gate, not --pattern top-blocks; leave --pattern out",
        ),
        (["--dry-run"], "--dry-run plans the training of a LoRA"),
        (["--set", "colour=1"], "has no colour; its fields are gate, density, threshold, tile"),
        (["--density", "2"], "density=2.0 must be in (0, 1]"),
    ],
)
def test_bad_options(vidsparse: Any, tmp_path: Path, arguments: list[str], says: str) -> None:
    refused(vidsparse("finetune", "--train-gate", "--out", tmp_path / "out", *arguments), says)
    assert not (tmp_path / "out").exists()


def test_deepspeed_has_nothing_to_divide(vidsparse: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    done = vidsparse("finetune", "--train-gate", "--out", tmp_path / "out")
    refused(done, "--train-gate trains no LoRA, which is what DeepSpeed would divide; start it without DeepSpeed")


def test_the_gate_is_that_of_the_folder() -> None:
    out = Path("runs/a b")
    assert gate_pattern(Finetuning(out)) == LearnedGate("runs/a b", density=0.2)
    given = Finetuning(out, density=0.3, settings=["tile=1,4,4"], dense_steps=2, dense_layers="0")
    assert gate_pattern(given) == StepSchedule(LearnedGate("runs/a b", density=0.3, tile=(1, 4, 4)), 2, 0, (0,))
    assert set(OF_LORA) < set(Finetuning.__dataclass_fields__)
    assert Finetuning(out).learning_rate is None and Settings.learning_rate == 1e-4


def test_it_trains(vidsparse: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipelines, "load_pipeline", lambda *_, **__: pipeline())
    words = ["--videos", "2", "--frames", "9", "--size", "16x16", "--set", "tile=1,2,2", "--steps", "1", "--cpu"]
    done = vidsparse("finetune", "--train-gate", "--out", tmp_path / "out", *words)
    assert "wrote the gate to" in done.out and "--pattern learned-gate --set gate=" in done.out
    gate = LearnedGate(str(tmp_path / "out"), density=0.5).load()
    assert gate.header.base == "shapes" and gate.header.tile == (1, 2, 2) and gate.header.steps == 1
