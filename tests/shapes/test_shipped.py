"""What ships: every file loads, the model fits its world, and all of it stays small."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean, median

import pytest
import torch
from needs import needs_weights
from safetensors.torch import load_file

import vidsparse
from vidsparse.generation.cascade import noise_levels, step_costs
from vidsparse.generation.frames import geometry
from vidsparse.generation.models import find_model, source_of
from vidsparse.generation.transformers import preset_of
from vidsparse.runtime.pipeline import transformers_of
from vidsparse.shapes.model import FOLDER, MAX_WORDS, SAMPLING, load_pipeline
from vidsparse.shapes.shipped import DEFAULT, LONGER_FRAMES, WORLD

ROOM = Path(vidsparse.__file__).parent / "shapes"
# Whoever installs the package downloads all of it: a model of 19 MB, a LoRA of 4 MB, and a little code.
MOST_BYTES = 25_000_000


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


def test_the_profile_expects_what_was_measured() -> None:
    measured = json.loads((ROOM.parents[1] / "benchmarks/results/shapes/catalogue.json").read_text())["rows"]
    expected = vidsparse.load_profile(FOLDER).expected
    assert expected is not None
    dense, videos = ([row for row in measured if row["name"] == name] for name in ("dense", "profile"))
    seconds, dense_seconds = ([row["seconds"] + row["coarse_seconds"] for row in rows] for rows in (videos, dense))
    assert expected.videos == len(videos) >= 8
    assert expected.psnr == pytest.approx(mean(row["psnr"] for row in videos), abs=0.01)
    assert expected.ssim == pytest.approx(mean(row["ssim"] for row in videos), abs=1e-3)
    assert expected.speedup == pytest.approx(median(dense_seconds) / median(seconds), abs=0.01)


@needs_weights
def test_the_model_is_loaded_by_its_name() -> None:
    pipe = load_pipeline(model="shapes")
    assert type(pipe).__name__ == "WanPipeline"
    assert [tuple(x.config.patch_size) for x in transformers_of(pipe).values()] == [(1, 2, 2), (1, 1, 1)]
    assert not any("reader" in parameter for parameter, _ in pipe.transformer.named_parameters())
    assert vidsparse.preset_for(pipe) is preset_of("shapes") is vidsparse.preset("shapes")
    loaded = find_model("shapes").load(torch.float32)
    assert torch.equal(loaded.transformer.proj_out.weight, pipe.transformer.proj_out.weight)


def test_no_file_holds_a_path_of_another_machine() -> None:
    assert not any("_name_or_path" in path.read_text() for path in FOLDER.rglob("*.json"))


def test_the_size_is_that_of_the_world() -> None:
    size = dict(height=WORLD.size, width=WORLD.size, num_frames=WORLD.frames)
    assert size == dict(height=128, width=128, num_frames=33)
    assert size | dict(num_inference_steps=20, guidance_scale=2.0, max_sequence_length=MAX_WORDS) == SAMPLING
    assert geometry(DEFAULT).grid(33, 128, 128).tokens == 9216
    assert source_of(DEFAULT) == str(FOLDER)
    assert find_model(DEFAULT).longer_frames == LONGER_FRAMES > WORLD.frames


def test_the_preset_is_sparse_in_the_steps_of_the_expert_for_low_noise() -> None:
    pattern, steps = vidsparse.preset("shapes").pattern, SAMPLING["num_inference_steps"]
    levels, costs = (of("shapes", steps) for of in (noise_levels, step_costs))
    context = [vidsparse.Context(layer=0, layers=6, step=i, steps=steps, sigma=x) for i, x in enumerate(levels)]
    assert [pattern.is_dense(c) for c in context] == [cost < 1 for cost in costs] == [True] * 13 + [False] * 7


@needs_weights
def test_the_experts_change_where_the_forecast_says() -> None:
    pipe = load_pipeline()
    pipe.scheduler.set_timesteps(20)
    high = [float(t) >= pipe.config.boundary_ratio * 1000 for t in pipe.scheduler.timesteps]
    assert high == [cost < 1 for cost in step_costs("shapes", 20)]


@needs_weights
def test_a_short_video() -> None:
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
    with pytest.raises(FileNotFoundError, match=r"no model of shapes at .*; give shapes or a folder"):
        load_pipeline(model=tmp_path)
