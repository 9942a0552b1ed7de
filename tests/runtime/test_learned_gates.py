"""A learned gate in a model: the one that it was trained for, and no other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gates import gate_folder, header_of
from tiny_training import pipeline

from vidsparse import LearnedGate, PerPhase, Radial, StepSchedule, sparsify
from vidsparse.shapes import model


@pytest.fixture
def pipe() -> object:
    return pipeline()


def test_it_runs_and_the_report_names_it(tmp_path: Path, pipe: object) -> None:
    transformer = pipe.transformer  # type: ignore[attr-defined]
    folder = gate_folder(tmp_path, header=header_of(transformer, 2, 1, 64))
    video = torch.randn(1, transformer.config.in_channels, 3, 4, 4)
    text = torch.randn(1, 5, transformer.config.text_dim)
    call = dict(hidden_states=video, timestep=torch.tensor([500]), encoder_hidden_states=text, return_dict=False)
    with torch.no_grad(), sparsify(pipe, LearnedGate(folder, density=0.25, tile=(1, 2, 2))) as run:
        sparse = transformer(**call)[0]
        report = run.report()
    with torch.no_grad():
        dense = transformer(**call)[0]
    assert report.density < 0.6 and "LearnedGate" in str(report)
    assert sparse.isfinite().all() and not torch.allclose(sparse, dense)


def test_another_model_is_refused(tmp_path: Path, pipe: object) -> None:
    other = model.build_transformer(num_layers=2, num_attention_heads=1, ffn_dim=32)
    folder = gate_folder(tmp_path, header=header_of(other, 2, 1, 64))
    for pattern in (
        LearnedGate(folder, density=0.2),
        StepSchedule(LearnedGate(folder, density=0.2), dense_steps=1),
        PerPhase((Radial(0.2), LearnedGate(folder, density=0.2)), sigmas=(0.5,)),
    ):
        with pytest.raises(ValueError, match=r"was trained for tiny \(WanTransformer3DModel\), and the model at hand"):
            sparsify(pipe, pattern)
    with pytest.raises(ValueError, match="gate='nowhere' is neither a file nor a folder"):
        sparsify(pipe, LearnedGate("nowhere", density=0.2))


def test_each_expert_has_its_own(tmp_path: Path, pipe: object) -> None:
    expert = pipeline().transformer
    pipe.register_modules(transformer_2=expert)  # type: ignore[attr-defined]
    header = header_of(expert, 2, 1, 64)
    folder = gate_folder(tmp_path, "transformer_2", header)
    with pytest.raises(ValueError, match=r"has no transformer_gate\S+, it has transformer_2_gate"):
        sparsify(pipe, LearnedGate(folder, density=0.2))
    file = str(tmp_path / "transformer_2_gate.safetensors")
    with pytest.raises(ValueError, match=r"is for 'transformer_2', and it was put into 'transformer'; give the folder"):
        sparsify(pipe, LearnedGate(file, density=0.2))
    sparsify(expert, LearnedGate(file, density=0.2)).restore()  # alone it has no name of its own
    gate_folder(tmp_path, "transformer", header)
    sparsify(pipe, LearnedGate(folder, density=0.2)).restore()
    with pytest.raises(ValueError, match=r"does not say which one it is: give the file, such as .*transformer_2_gate"):
        sparsify(expert, LearnedGate(folder, density=0.2))
