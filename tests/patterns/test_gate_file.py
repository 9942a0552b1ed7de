"""The file of a learned gate: written, read, and refused."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from gates import HEADER, gate_folder, random_weights
from safetensors.torch import save_file

from vidsparse.patterns.gate_file import GateHeader, gate_path, load_gate, save_gate
from vidsparse.patterns.gate_weights import GateWeights


def written(path: Path, header: dict[str, object], layers: int = 2, **changes: torch.Tensor) -> str:
    weights = {
        f"layers.{i}.{name}": x.clone() for i in range(layers) for name, x in random_weights(3, 8, i)._asdict().items()
    }
    save_file({**weights, **changes}, path, {"format": "pt", "vidsparse_gate": json.dumps(header)})
    return str(path)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    header = replace(HEADER, tile=(1, 4, 4), steps=7, base="shapes", config={"patch_size": [1, 2, 2]})
    gate = load_gate(gate_folder(tmp_path, "transformer_2", header), "transformer_2")
    assert gate.header == replace(header, transformer="transformer_2")
    for layer in range(2):
        for found, expected in zip(gate.weights(layer, torch.device("cpu")), random_weights(3, 8, layer), strict=True):
            assert torch.equal(found, expected)
    assert load_gate(str(gate.path), "anything") is load_gate(str(tmp_path), "transformer_2")  # read once


def test_a_file_that_changed_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "transformer_gate.safetensors"
    save_gate(path, HEADER, [random_weights(3, 8, 0), random_weights(3, 8, 1)])
    before = load_gate(str(path), "transformer")
    save_gate(path, replace(HEADER, steps=5), [random_weights(3, 8, 2), random_weights(3, 8, 3)])
    os.utime(path, ns=(1, 1))
    assert load_gate(str(path), "transformer").header.steps == 5 and before.header.steps == 0


def test_an_earlier_file_survives_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(gate_folder(tmp_path)) / "transformer_gate.safetensors"

    def full(*_: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save", full)
    with pytest.raises(OSError, match=r"cannot write the gate .*No space left on device; an earlier one is whole"):
        save_gate(path, HEADER, [])
    assert load_gate(str(path), "transformer").header == HEADER
    assert [x.name for x in tmp_path.iterdir()] == [path.name]


def test_what_is_missing_or_no_gate(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"gate='nowhere' is neither a file nor a folder: give what vidsparse finetune"
    ):
        gate_path("nowhere", "transformer")
    folder = gate_folder(tmp_path / "runs")
    with pytest.raises(ValueError, match=r"no transformer_2_gate\S+, it has transformer_gate.*--transformer transform"):
        gate_path(folder, "transformer_2")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="it has no gate"):
        gate_path(str(tmp_path / "empty"), "transformer")
    (tmp_path / "text").write_text("no tensors")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        load_gate(str(tmp_path / "text"), "transformer")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="is not a learned gate: its header has no vidsparse_gate"):
        load_gate(str(tmp_path / "other.safetensors"), "transformer")


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ({"version": 2}, "of version 2, and this vidsparse reads up to 1; upgrade vidsparse"),
        ({"heads": 0}, "whole numbers of at least 1"),
        ({"heads": True}, "whole numbers of at least 1"),
        ({"tile": [1, 0, 4]}, "tile="),
        ({"transformer": 3}, "needs words"),
        ({"colour": 1}, "colour"),
        ({"layers": 3}, "damaged: layer 2 has shapes"),
        ({"layers": 1}, "has layers.1"),
        ({"head_dim": 4}, "damaged: layer 0 has shapes"),
    ],
)
def test_damaged_headers(tmp_path: Path, header: dict[str, object], said: str) -> None:
    source = written(tmp_path / "gate.safetensors", {**asdict(HEADER), **header})
    with pytest.raises(ValueError, match=said):
        load_gate(source, "transformer")


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    broken = {"layers.1.query": torch.full((3, 8, 8), float("nan"))}
    with pytest.raises(ValueError, match="damaged: layer 1 is not finite"):
        load_gate(written(tmp_path / "gate.safetensors", asdict(HEADER), **broken), "transformer")


def test_a_header_without_its_form_is_refused() -> None:
    with pytest.raises(ValueError, match="needs words for transformer, model and base, and an object for config"):
        GateHeader("transformer", "Model", [], 1, 1, 1)  # type: ignore[arg-type]
    assert GateWeights._fields == ("query", "key"), "names in the file"
