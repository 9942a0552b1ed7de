"""`vidsparse finetune --from-image`, and the sizes that a model has by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState
from pipelines_with_inputs import save
from safetensors.torch import load_file
from twins import ignores_warnings

from vidsparse.cli import app
from vidsparse.cli.clip_options import ClipOptions
from vidsparse.cli.finetune_model import trained_model
from vidsparse.finetune import Bucket
from vidsparse.finetune.families.ltx2 import LTX2ImageTask
from vidsparse.generation.models import find_model
from vidsparse.lora.files import read_recipe

pytestmark = [ignores_warnings, pytest.mark.filterwarnings("ignore::FutureWarning")]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder, found = tmp_path_factory.mktemp("models"), dict[str, Path]()

    def model(name: str) -> Path:
        if name not in found:
            found[name] = save(name, folder / name)
        return found[name]

    return model


def named(folder: Path, pipeline: str, **more: Any) -> str:
    """A folder whose settings name a pipeline, without its parts."""
    folder.mkdir()
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline, **more}))
    return str(folder)


@pytest.mark.parametrize(
    ("name", "pipeline"),
    [
        ("wan_expand", "WanImageToVideoPipeline"),
        ("ltx", "LTXImageToVideoPipeline"),
        ("wan_image", "WanImageToVideoPipeline"),
        ("framepack", "HunyuanVideoFramepackPipeline"),
    ],
)
def test_the_pipeline_that_starts_from_an_image(saved: Any, name: str, pipeline: str) -> None:
    model = trained_model(str(saved(name)), from_image=True)
    assert model.pipeline_class.__name__ == pipeline
    assert trained_model(str(saved(name)), from_image=False).pipeline is None


@pytest.mark.parametrize("name", ["wan_expand", "ltx"])
def test_a_training_from_the_first_frame(
    saved: Any, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size, steps = ("64x64" if name == "ltx" else "32x32"), ["--steps", 1, "--log-every", 1, "--rank", 2]
    asked = ["--model", saved(name), "--from-image", "--frames", 9, "--size", size, "--videos", 2, "--cpu", *steps]
    asked += ["--set", "tile=(1,2,2)", "--precision", "no", "--no-samples", "--dense-steps", 0, "-o", tmp_path / "run"]
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(SystemExit) as stop:
        app(["finetune", *map(str, asked)], prog_name="vidsparse")
    assert stop.value.code in (0, None), capsys.readouterr().err
    encoded = [load_file(path) for path in (tmp_path / "run/cache").glob("latents-*.safetensors")]
    assert len(encoded) == 2 and all(one.keys() == {"tensor", "first"} for one in encoded)
    assert read_recipe(tmp_path / "run").frames == 9


@pytest.mark.parametrize(
    ("pipeline", "message"),
    [
        ("MochiPipeline", r"--from-image: no pipeline makes videos of .* from an image, and its own is MochiPipeline"),
        ("WanPipeline", r"and its own is WanPipeline; give --model a checkpoint for image to video, or leave it out"),
    ],
)
def test_a_checkpoint_for_text_alone_is_refused(tmp_path: Path, pipeline: str, message: str) -> None:
    folder = named(tmp_path / "model", pipeline)
    trained_model(folder, from_image=False)
    with pytest.raises(ValueError, match=message):
        trained_model(folder, from_image=True)


def test_shapes_makes_no_videos_from_images() -> None:
    with pytest.raises(ValueError, match="--from-image: no pipeline makes videos of shapes from an image"):
        trained_model("shapes", from_image=True)


def test_what_cannot_be_trained_is_refused_before_it_is_loaded(saved: Any, tmp_path: Path) -> None:
    with pytest.raises(NotImplementedError, match="WanVACEPipeline cannot be trained; finetune trains WanPipeline"):
        trained_model(named(tmp_path / "vace", "WanVACEPipeline"), from_image=False)
    with pytest.raises(NotImplementedError, match="SkyReelsV2DiffusionForcingImageToVideoPipeline cannot be trained"):
        trained_model(str(saved("skyreels")), from_image=True)


def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LTX2ImageTask, "packages", ("not_av",))
    folder = named(tmp_path / "ltx2", "LTX2ImageToVideoPipeline")
    with pytest.raises(ImportError, match="pip install not_av"):
        trained_model(folder, from_image=False)


def test_sizes_of_the_model_are_those_that_its_pipeline_makes(saved: Any) -> None:
    found = ClipOptions().buckets(find_model(str(saved("framepack"))))
    assert found == [Bucket(145, 720, 1280)], "four sections, where 129 frames are asked for"


@pytest.mark.parametrize(
    ("pipeline", "transformer", "frames", "message"),
    [
        (
            "LTX2Pipeline",
            "LTX2VideoTransformer3DModel",
            None,
            "LTX2Pipeline has no num_frames of its own; give --frames",
        ),
        (
            "HunyuanVideo15Pipeline",
            "HunyuanVideo15Transformer3DModel",
            [9],
            "HunyuanVideo15Pipeline has no height of its own; give --size",
        ),
    ],
)
def test_a_size_that_the_pipeline_leaves_open_is_asked_for(
    tmp_path: Path, pipeline: str, transformer: str, frames: list[int] | None, message: str
) -> None:
    folder = named(tmp_path / "model", pipeline, transformer=["diffusers", transformer])
    (tmp_path / "model/transformer").mkdir()
    (tmp_path / "model/transformer/config.json").write_text(json.dumps({"_class_name": transformer}))
    with pytest.raises(ValueError, match=message):
        ClipOptions(frames=frames).buckets(find_model(folder))
