"""The weights of a training as the model that ships: all of its files, whole or not at all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import AUTOENCODER, STATISTICS, export_weights
from export import assemble, export
from latents import Statistics
from needs import needs_weights
from plan import PLANS
from safetensors.torch import load_file, save_file
from transformer import Weights, build, file_of, start_weights

from vidsparse.shapes.model import build_vae, load_pipeline
from vidsparse.shapes.shipped import FOLDER, PROFILE

pytestmark = needs_weights
STATED = Statistics(tuple(0.1 * i for i in range(8)), tuple(1.0 + 0.1 * i for i in range(8)))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The folder of a training whose first expert has begun, and whose second has not."""
    folder = tmp_path / "run"
    folder.mkdir()
    torch.manual_seed(1)
    transformer, reader = build(start_weights(), 2, "cpu")
    high = Weights(transformer.state_dict(), 2, reader.state_dict(), "high", 7, plain=True)
    low = Weights(start_weights().transformer, 1, reader.state_dict(), "patch1", 9, done=True)
    for weights in (high, low):
        weights.write(folder / file_of(weights.phase))
    save_file({name: x.half() for name, x in build_vae().state_dict().items()}, folder / AUTOENCODER)
    STATED.write(folder / STATISTICS)
    return folder


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_newest_weights_become_the_model_that_ships(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "package/weights"
    monkeypatch.setattr("commands.EXPORTED", folder)
    (folder / "vae").mkdir(parents=True)
    (folder / "vae/of_before").touch()
    monkeypatch.setattr("commands.WEIGHTS", tmp_path / "kept")
    export_weights(type("Given", (), {"out": out, "plan": PLANS["cpu"]}))  # type: ignore[arg-type]
    assert " 18.8 MB" in capsys.readouterr().out
    assert [path.name for path in folder.parent.iterdir()] == ["weights"], "nothing is left beside it"
    index, begun = (json.loads((x / "model_index.json").read_text()) for x in (folder, FOLDER))
    assert (index["tokenizer"], index["text_encoder"]) == (begun["tokenizer"], begun["text_encoder"])
    assert files(folder) == files(FOLDER) - {PROFILE}
    for part in ("text_encoder/model.safetensors", "tokenizer/tokenizer.json"):
        assert (folder / part).read_bytes() == (FOLDER / part).read_bytes()
    assert str(tmp_path) not in "".join(path.read_text() for path in folder.rglob("*.json"))
    assert all(path.stat().st_mode & 0o044 for path in folder.rglob("*") if path.is_file())

    pipe = load_pipeline(model=folder)
    assert pipe.config.boundary_ratio == PLANS["cpu"].boundary
    for transformer, phase, patch in ((pipe.transformer, "high", 2), (pipe.transformer_2, "patch1", 1)):
        expected = Weights.read(out / file_of(phase)).transformer
        assert tuple(transformer.config.patch_size) == (1, patch, patch)
        for name, found in transformer.state_dict().items():
            assert torch.equal(found, expected[name].half().float()), name
    assert pipe.vae.config.latents_mean == pytest.approx(STATED.mean)
    assert pipe.vae.config.latents_std == pytest.approx(STATED.std)
    saved = load_file(out / AUTOENCODER)
    assert all(torch.equal(found, saved[name].float()) for name, found in pipe.vae.state_dict().items())
    scheduler = json.loads((folder / "scheduler/scheduler_config.json").read_text())
    assert (scheduler["_class_name"], scheduler["flow_shift"]) == ("UniPCMultistepScheduler", 6.0)
    halves = load_file(folder / "transformer/diffusion_pytorch_model.safetensors").values()
    assert {x.dtype for x in halves} == {torch.float16}


def test_positions_that_no_file_can_say_are_refused(out: Path) -> None:
    high, low = (Weights.read(out / file_of(phase)) for phase in ("high", "patch1"))
    with pytest.raises(ValueError, match="high counts positions in latents"):
        assemble(build_vae(), (replace(high, plain=False), low), 0.8, STATED)


@pytest.mark.parametrize("step", ["save_pretrained", "rename"])
def test_a_failure_leaves_the_model_that_was_there(
    step: str, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "package/weights"
    folder.mkdir(parents=True)
    (folder / "of_before").touch()
    experts = Weights.read(out / file_of("high")), Weights.read(out / file_of("patch1"))
    pipe: Any = assemble(build_vae(), experts, 0.8, STATED)
    rename = Path.rename

    def fail(*given: Any, **more: Any) -> Any:
        if step == "rename" and given[0].suffix != ".new":
            return rename(*given)
        raise OSError("the disk is full")

    monkeypatch.setattr(type(pipe) if step == "save_pretrained" else Path, step, fail)
    with pytest.raises(OSError, match="the disk is full"):
        export(pipe, folder)
    monkeypatch.undo()
    assert [path.name for path in folder.parent.iterdir()] == ["weights"] and files(folder) == {"of_before"}
