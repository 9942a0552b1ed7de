"""The training of a gate: it resumes bit for bit, and leaves the model alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import BUCKET, assert_same, pipeline

from vidsparse import LearnedGate, Radial, Reuse, StepSchedule, sparsify
from vidsparse.finetune import Settings, Stopped, drawn_clips
from vidsparse.finetune.gate.job import train_gate
from vidsparse.finetune.gate.training import gate_in, with_pattern
from vidsparse.finetune.process import stopping

SMALL: dict[str, Any] = dict(steps=4, learning_rate=3e-3, warmup=1, precision="no", log_every=2, save_every=2)
TILE = (1, 2, 2)


def trained(
    folder: Path, cache: Path, pipe: Any = None, pattern: Any = None, **changes: Any
) -> dict[str, torch.Tensor]:
    pattern = pattern or LearnedGate(str(folder), density=0.25, tile=TILE)
    settings = Settings(pattern, **{**SMALL, **changes})
    clips, pipe = drawn_clips(4, BUCKET), pipe or pipeline()
    return load_file(
        train_gate(pipe, clips, settings, folder, base="tiny", cache=cache, cpu=True, say=lambda text: None)
    )


def lines(folder: Path, transformer: str = "transformer") -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / transformer / "log.jsonl").read_text().splitlines()]


def test_only_the_gate_changes(tmp_path: Path, cache: Path) -> None:
    pipe = pipeline()
    before = {name: x.clone() for name, x in pipe.transformer.state_dict().items()}
    processors = dict(pipe.transformer.attn_processors)
    weights = trained(tmp_path, cache, pipe)
    assert [line["step"] for line in lines(tmp_path)] == [2, 4]
    assert all(0 < line[name] < 1 for line in lines(tmp_path) for name in ("divergence", "recall", "untrained"))
    assert {tuple(x.shape) for x in weights.values()} == {(1, 64, 64), (1, 64, 192)} and len(weights) == 4
    assert all(torch.equal(x, before[name]) for name, x in pipe.transformer.state_dict().items())
    assert pipe.transformer.attn_processors == processors and not pipe.transformer.training
    sparsify(pipe, LearnedGate(str(tmp_path), density=0.25)).restore()
    with pytest.raises(ValueError, match="the model at hand is another WanTransformer3DModel"):
        sparsify(pipeline(ffn_dim=32), LearnedGate(str(tmp_path), density=0.25))


def test_a_resumed_training_ends_with_the_same_gate(tmp_path: Path, cache: Path, monkeypatch: Any) -> None:
    whole = trained(tmp_path / "whole", cache, steps=4)

    class Asked(stopping.Stop):
        def __init__(self) -> None:
            super().__init__()
            self.asked = 15

    folder = tmp_path / "parts"
    pattern = LearnedGate(str(tmp_path / "whole"), density=0.25, tile=TILE)  # the name does not change the weights
    with monkeypatch.context() as patch:
        patch.setattr(stopping, "Stop", Asked)
        with pytest.raises(Stopped, match="SIGTERM") as stopped:
            trained(folder, cache, pattern=pattern, steps=4)
    assert stopped.value.step == 1 and not (folder / "transformer_gate.safetensors").exists()
    assert_same(trained(folder, cache, pattern=pattern, steps=4), whole)
    without = [{name: x for name, x in line.items() if name != "seconds"} for line in lines(folder)]
    assert without == [{n: x for n, x in line.items() if n != "seconds"} for line in lines(tmp_path / "whole")]
    with pytest.raises(ValueError, match=r"are of another training.*seed was 0, is 1"):
        trained(folder, cache, pattern=pattern, steps=4, seed=1)


def test_two_experts_share_a_folder(tmp_path: Path, cache: Path) -> None:
    pipe = pipeline()
    pipe.register_modules(transformer_2=pipeline().transformer)
    pipe.register_to_config(boundary_ratio=0.9)
    for name in ("transformer", "transformer_2"):
        trained(tmp_path, cache, pipe, transformer=name, steps=1)
    sparsify(pipe, LearnedGate(str(tmp_path), density=0.25)).restore()
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"transformer", "transformer_2"}


def test_dense_layers_learn_nothing(tmp_path: Path, cache: Path) -> None:
    pattern = StepSchedule(LearnedGate(str(tmp_path), density=0.25, tile=TILE), dense_layers=(0,))
    weights = trained(tmp_path, cache, pattern=pattern, steps=2)
    assert torch.equal(weights["layers.0.query"][0], torch.eye(64))
    assert not torch.equal(weights["layers.1.query"][0], torch.eye(64))


def test_what_is_refused(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, out = LearnedGate("out", density=0.25), tmp_path / "out"
    for pattern in (Radial(0.2), StepSchedule(Radial(0.2), 1), StepSchedule(Reuse(gate), 1)):
        with pytest.raises(ValueError, match="must be a LearnedGate, alone or in a StepSchedule"):
            trained(out, cache, pattern=pattern)
    with pytest.raises(NotImplementedError, match="positions='yarn': a gate is trained with those of the model"):
        trained(out, cache, positions="yarn", trained_frames=9)
    with pytest.raises(ValueError, match="transformer='transformer_2' does not exist"):
        trained(out, cache, transformer="transformer_2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(NotImplementedError, match="trained by one process, and here are 2"):
        trained(out, cache)
    assert not out.exists()


def test_a_schedule_gets_another_pattern() -> None:
    gate = LearnedGate("out", density=0.25)
    schedule = StepSchedule(StepSchedule(gate, dense_steps=1), dense_last_steps=2)
    assert gate_in(schedule) is gate and gate_in(gate) is gate
    changed = with_pattern(schedule, Radial(0.2))
    assert changed == replace(schedule, pattern=StepSchedule(Radial(0.2), dense_steps=1))
