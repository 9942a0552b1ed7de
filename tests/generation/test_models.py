"""What is known of a model before its weights are loaded."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import LTXPipeline, WanPipeline

from vidsparse.generation.models import Model, Shapes, find_model, source_of
from vidsparse.shapes.model import FOLDER, SAMPLING
from vidsparse.shapes.render import draw_trajectories, render
from vidsparse.shapes.scene import parse_prompt

PROMPT = "a red circle moving left on a blue background"


def of_class(folder: Path, pipeline: str) -> Model:
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    return find_model(str(folder))


def test_shapes_is_a_known_model() -> None:
    model = find_model("shapes")
    assert isinstance(model, Shapes) and model.pipeline_class is WanPipeline
    assert (model.sampling, model.fps, source_of("shapes")) == (SAMPLING, 12, str(FOLDER))
    assert (model.default("num_frames"), model.default("num_inference_steps")) == (33, 20)
    assert model.longer_frames == 65 and model.small
    assert model.default("output_type") == "np", "what shapes does not say is the pipeline's"
    assert model.read_prompt("A red circle, moving left on a blue background.") == PROMPT
    with pytest.raises(ValueError, match="does not know 'fox'"):
        model.read_prompt("a fox")


def test_the_judge_of_shapes_knows_its_prompt() -> None:
    model, frames = find_model("shapes"), 33
    scene = parse_prompt(PROMPT)
    video = render(scene, draw_trajectories(scene, random.Random(0), frames), frames, 64, 64)
    video = video.permute(1, 2, 3, 0).numpy() / 2 + 0.5
    right = model.judge(video.astype(np.float32), PROMPT)
    wrong = model.judge(video.astype(np.float32), "a green square moving up on a black background")
    assert right is not None and wrong is not None and right["mean"] > 0.9 > 0.5 > wrong["mean"]
    assert set(right) == set(wrong) and model.judge(video[:1], PROMPT) is None


def test_other_models_have_the_defaults_of_their_pipeline(tmp_path: Path) -> None:
    model = of_class(tmp_path, "LTXPipeline")
    assert (model.pipeline_class, model.sampling, source_of(model.name)) == (LTXPipeline, {}, str(tmp_path))
    assert (model.default("num_frames"), model.default("height"), model.default("nothing")) == (161, 512, None)
    assert model.read_prompt("a fox") == "a fox" and model.judge(np.zeros((3, 8, 8, 3), np.float32), "a fox") is None
    with pytest.raises(ValueError, match="the prompt is empty"):
        model.read_prompt(" ")
    assert find_model("owner/name") == Model("owner/name"), "nothing is asked of the Hub"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{}", "names the pipeline None, which diffusers"),
        ('{"_class_name": "NopePipeline"}', "names the pipeline 'NopePipeline', which diffusers"),
        ('{"_class_name": ["a", "b"]}', "names the pipeline"),
        ("[]", "holds list, expected settings by name"),
        ("{", "is not JSON"),
    ],
)
def test_settings_that_name_no_pipeline(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "model_index.json").write_text(text)
    with pytest.raises((OSError, ValueError), match=says):
        _ = find_model(str(tmp_path)).pipeline_class


def test_names_that_are_not_models(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a diffusers pipeline: the folder has no model_index"):
        find_model(str(tmp_path))
    with pytest.raises(ValueError, match="model 'shape' is unknown; give 'shapes', the folder of"):
        find_model("shape")


@pytest.mark.parametrize(
    ("pipeline", "arguments", "says"),
    [
        ("WanPipeline", {"height": 63}, "divisible by 16"),
        ("WanPipeline", {"strength": 1.0}, "WanPipeline takes no strength"),
        ("LTXPipeline", {"height": 40}, "divisible by 32"),
        ("HunyuanVideoPipeline", {"width": 24}, "divisible by 16"),
        ("MochiPipeline", {"height": 12}, "divisible by 8"),
        ("CogVideoXImageToVideoPipeline", {}, "needs --image FILE"),
        ("CogVideoXVideoToVideoPipeline", {}, "needs --video FILE"),
    ],
)
def test_arguments_that_a_pipeline_refuses(tmp_path: Path, pipeline: str, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        of_class(tmp_path, pipeline).check_arguments({"prompt": "a fox", **arguments})


@pytest.mark.parametrize(
    "pipeline",
    [
        *("AllegroPipeline", "CogVideoXPipeline", "HunyuanVideoPipeline", "HunyuanVideo15Pipeline", "LTXPipeline"),
        *("Kandinsky5T2VPipeline", "LTX2Pipeline", "LTXConditionPipeline", "MochiPipeline", "SkyReelsV2Pipeline"),
        *("SkyReelsV2DiffusionForcingPipeline", "WanPipeline", "WanVACEPipeline", "CosmosTextToWorldPipeline"),
    ],
)
def test_text_to_video_passes(tmp_path: Path, pipeline: str) -> None:
    of_class(tmp_path, pipeline).check_arguments({"prompt": "a fox", "num_inference_steps": 4})


@pytest.mark.parametrize(
    ("cls", "settings", "fps"),
    [
        ("LTXVideoTransformer3DModel", {}, 25),
        ("WanTransformer3DModel", {}, 16),
        ("WanTransformer3DModel", {"in_channels": 48}, 24),
        ("CogVideoXTransformer3DModel", {}, 8),
        ("CogVideoXTransformer3DModel", {"patch_size_t": 2}, 16),
        ("CosmosTransformer3DModel", {}, 30),
        ("CosmosTransformer3DModel", {"extra_pos_embed_type": None}, 16),
        ("HunyuanVideo15Transformer3DModel", {}, 24),
    ],
)
def test_frames_a_second_are_those_of_the_model(tmp_path: Path, cls: str, settings: dict[str, Any], fps: int) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"transformer": ["diffusers", cls]}))
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer/config.json").write_text(json.dumps({"_class_name": cls, **settings}))
    assert find_model(str(tmp_path)).fps == fps
