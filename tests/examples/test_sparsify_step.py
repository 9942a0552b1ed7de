"""The example of a block for modular pipelines, loaded as diffusers loads one from the Hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ModularPipelineBlocks
from hub_blocks import own_modules
from modular_pipelines import MODULAR, STEPS

from vidsparse import Radial, StepSchedule, preset_for, sparsify
from vidsparse.shapes.model import FOLDER as SHAPES

FOLDER = Path(__file__).parents[2] / "examples/modular"
PATTERN = Radial(density=0.3, tile=(1, 4, 4))


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    own_modules(monkeypatch, tmp_path)
    return ModularPipelineBlocks.from_pretrained(str(FOLDER), trust_remote_code=True)


def with_step(step: Any) -> Any:
    """The pipeline of Wan 2.2, which has two transformers, with the step in front."""
    dense = MODULAR["wan-2.2"].build()
    blocks = dense.blocks
    blocks.sub_blocks.insert("sparsify", step, 0)
    pipe = blocks.init_pipeline()
    pipe.update_components(**dense.components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def test_the_step_sparsifies_what_comes_after_it(step: Any) -> None:
    case, pipe = MODULAR["wan-2.2"], with_step(step)
    found = case.latents(pipe, pattern=PATTERN, dense_steps=1)
    report = pipe.sparse_run.report()
    assert {c.transformer for c in report.sparse} == {"transformer", "transformer_2"}
    assert {c.step for c in report.sparse} == {1, 2, 3} and {c.steps for c in report.calls} == {STEPS}
    pipe.sparse_run.restore()
    dense = MODULAR["wan-2.2"].build()
    with sparsify(dense, StepSchedule(PATTERN, dense_steps=1)):
        assert torch.equal(found, case.latents(dense))
    # Dense again, then with the pattern of another call.
    assert torch.equal(
        MODULAR["wan-2.2"].latents(dense), case.latents(pipe, pattern="radial", density=1.0, dense_steps=STEPS)
    )
    case.latents(pipe)
    assert repr(preset_for(dense).pattern) in pipe.sparse_run.report().pattern
    case.latents(pipe, pattern="sliding-tile")
    assert "SlidingTile" in pipe.sparse_run.report().pattern and pipe.sparse_run.report().sparse_calls
    assert next(iter(pipe.blocks.sub_blocks)) == "sparsify"  # diffusers copies the blocks, and a run cannot be copied


@torch.no_grad()
def test_what_the_step_refuses(step: Any) -> None:
    case, pipe = MODULAR["wan-2.2"], with_step(step)
    with pytest.raises(ValueError, match=r"density=0.2 is for the name of a pattern; set it in Radial"):
        case.latents(pipe, pattern=PATTERN, density=0.2)
    with pytest.raises(ValueError, match=r"are for a pattern; give one, such as pattern='radial'"):
        case.latents(pipe, dense_steps=0.25)
    with pytest.raises(ValueError, match="pattern 'round' is unknown"):
        case.latents(pipe, pattern="round")
    assert not hasattr(pipe, "sparse_run")


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:.*torch_dtype.*:FutureWarning")
def test_the_readme_runs(step: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `shapes`, and at a small size."""
    text = (FOLDER / "README.md").read_text()
    code = text.partition("```python\n")[2].partition("```")[0].replace("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", str(SHAPES))
    small = "num_frames=5, height=32, width=32, num_inference_steps=12, max_sequence_length=32"
    monkeypatch.chdir(FOLDER.parents[1])
    names: dict[str, Any] = {}
    exec(code.replace('output="videos"', f'{small}, output="videos"'), names)
    assert len(names["video"]) == 5
    report = names["pipe"].sparse_run.report()
    assert {c.step for c in report.sparse} == {*range(3, 12)} and {c.step for c in report.calls} == {*range(12)}


def test_the_folder_is_what_diffusers_saves(step: Any, tmp_path: Path) -> None:
    step.save_pretrained(tmp_path / "saved")
    saved, ours = (json.loads((folder / "modular_config.json").read_text()) for folder in (tmp_path / "saved", FOLDER))
    assert {**saved, "_diffusers_version": ""} == {**ours, "_diffusers_version": ""}
