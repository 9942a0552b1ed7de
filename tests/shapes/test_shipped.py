"""The models that ship: every file loads, they fit their world, and all of them together stay small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from needs import needs_weights
from safetensors.torch import load_file

import vidsparse
from vidsparse.generation.cascade import noise_levels, step_costs
from vidsparse.generation.frames import geometry
from vidsparse.generation.models import find_model, shipped_name, source_of
from vidsparse.generation.transformers import preset_of
from vidsparse.runtime.pipeline import transformers_of
from vidsparse.shapes.model import FOLDER, MAX_WORDS, SAMPLING, load_pipeline
from vidsparse.shapes.shipped import DEFAULT, SHIPPED, shipped_at

ROOM = Path(vidsparse.__file__).parent / "shapes"
# Whoever installs the package downloads all of it: models of 19 and 11 MB, a LoRA of 4 MB, and a little code.
MOST_BYTES = 35_000_000

every = pytest.mark.parametrize("name", SHIPPED)


def files() -> list[Path]:
    return [path for path in ROOM.rglob("*") if path.is_file() and "__pycache__" not in path.parts]


def test_what_ships_is_small() -> None:
    size = sum(path.stat().st_size for path in files())
    assert 1_000_000 < size <= MOST_BYTES


@needs_weights
def test_every_file_loads() -> None:
    kinds = {path.suffix for path in files()} - {".py"}
    assert kinds == {".json", ".safetensors"}
    for path in files():
        if path.suffix == ".json":
            assert json.loads(path.read_text()), path
        if path.suffix == ".safetensors":
            tensors = load_file(path)
            assert tensors and all(bool(x.isfinite().all()) for x in tensors.values()), path
            assert {x.element_size() for x in tensors.values() if x.is_floating_point()} == {2}, path


@needs_weights
@every
def test_a_model_is_loaded_by_its_name(name: str) -> None:
    pipe = load_pipeline(model=name)
    known = SHIPPED[name]
    patches = {"shapes": [(1, 2, 2), (1, 1, 1)], "shapes-64": [(1, 1, 1)]}[name]
    assert type(pipe).__name__ == "WanPipeline"
    assert [tuple(x.config.patch_size) for x in transformers_of(pipe).values()] == patches
    assert not any("reader" in parameter for parameter, _ in pipe.transformer.named_parameters())
    assert shipped_name(pipe.transformer) == name == shipped_at(known.folder).name  # type: ignore[union-attr]
    assert vidsparse.preset_for(pipe) is preset_of(name) is vidsparse.preset(name)
    loaded = find_model(name).load(torch.float32)
    assert torch.equal(loaded.transformer.proj_out.weight, pipe.transformer.proj_out.weight)


@needs_weights
def test_the_models_differ_in_weights_and_share_their_text_encoder() -> None:
    one, other = (SHIPPED[name].folder for name in ("shapes", "shapes-64"))
    for part in ("text_encoder/model.safetensors", "tokenizer/tokenizer.json"):
        assert (one / part).read_bytes() == (other / part).read_bytes(), part
    for part in ("transformer/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"):
        assert (one / part).read_bytes() != (other / part).read_bytes(), part
    shifts = [json.loads((x / "scheduler/scheduler_config.json").read_text())["flow_shift"] for x in (one, other)]
    assert shifts == [6.0, 3.0]
    assert not any("_name_or_path" in path.read_text() for path in one.rglob("*.json")), "a path of another machine"


@every
def test_the_size_is_that_of_the_world(name: str) -> None:
    known = SHIPPED[name]
    tokens = {"shapes": 9216, "shapes-64": 2304}[name]
    sampling = known.sampling
    assert sampling["height"] == sampling["width"] == known.world.size
    assert geometry(name).grid(*(sampling[x] for x in ("num_frames", "height", "width"))).tokens == tokens
    assert find_model(name).world is known.world and source_of(name) == str(known.folder)
    assert find_model(name).longer_frames == known.longer_frames > sampling["num_frames"]


def test_the_default_is_the_large_one() -> None:
    known = SHIPPED["shapes"]
    assert known.name == DEFAULT and known.folder == FOLDER and known.sampling == SAMPLING
    size = dict(height=128, width=128, num_frames=33)
    assert known.sampling == size | dict(num_inference_steps=20, guidance_scale=2.0, max_sequence_length=MAX_WORDS)


def test_the_preset_is_sparse_in_the_steps_of_the_expert_for_low_noise() -> None:
    pattern, known = vidsparse.preset("shapes").pattern, SHIPPED["shapes"]
    levels, costs = (of("shapes", known.steps) for of in (noise_levels, step_costs))
    context = [vidsparse.Context(layer=0, layers=6, step=i, steps=known.steps, sigma=x) for i, x in enumerate(levels)]
    assert [pattern.is_dense(c) for c in context] == [cost < 1 for cost in costs] == [True] * 13 + [False] * 7


@needs_weights
def test_the_experts_change_where_the_forecast_says() -> None:
    pipe = load_pipeline()
    pipe.scheduler.set_timesteps(20)
    high = [float(t) >= pipe.config.boundary_ratio * 1000 for t in pipe.scheduler.timesteps]
    assert high == [cost < 1 for cost in step_costs("shapes", 20)]


@needs_weights
def test_a_short_video_of_the_default_model() -> None:
    pipe = load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    with vidsparse.sparsify(pipe) as run:
        frames = pipe(
            "a red circle moving left on a blue background",
            **SAMPLING | {"num_frames": 5, "num_inference_steps": 2},
            generator=torch.Generator().manual_seed(0),
        ).frames[0]
    assert frames.shape == (5, 128, 128, 3)
    report = run.report()
    # Two branches of guidance; of two steps the second is at a noise of 0.83, and still that of the first expert.
    assert (report.sparse_calls, report.dense_calls) == (0, 24)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no model of shapes at .*; give shapes, shapes-64 or a folder"):
        load_pipeline(model=tmp_path)
    assert shipped_at(tmp_path) is None and shipped_name(torch.nn.Linear(1, 1)) is None
