"""Loading a pipeline: what is refused before, and what it comes with."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_lora
import torch
from diffusers import DPMSolverMultistepScheduler
from twins import ignores_warnings, twin

from vidsparse import extend_positions
from vidsparse.generation.models import Model, find_model
from vidsparse.generation.pipeline import check_device, first_recipe, fit_arguments, is_gated, load_pipeline
from vidsparse.lora.recipe import LoraRecipe
from vidsparse.shapes import model as shapes


class Tiny(Model):
    """A random pipeline that is loaded from nowhere."""

    def load(self, dtype: torch.dtype, quantization: Any = None) -> Any:
        return tiny_lora.pipeline().to(dtype)


TINY = Tiny("shapes", {"num_frames": 33})


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"sampler": "euler"}, "sampler='euler' is unknown"),
        ({"flow_shift": 0.0}, "flow_shift=0.0 must be above 0"),
        ({"positions": "ntk"}, "positions 'ntk' is unknown; choose one of plain, riflex, yarn"),
        ({"device": "abacus"}, "device 'abacus' is not available"),
        ({"device": "cpu", "offload": True}, "but the device is the CPU"),
        ({"dtype": "int4"}, r"dtype 'int4' is unknown; choose one of float32 \(fp32"),
    ],
)
def test_what_is_refused_before_anything_is_loaded(asked: dict[str, Any], says: str) -> None:
    class Never(Model):
        def load(self, dtype: torch.dtype, quantization: Any = None) -> Any:
            pytest.fail("the model was loaded")

    with pytest.raises(ValueError, match=says):
        load_pipeline(Never("shapes"), **asked)


def test_what_a_pipeline_comes_with() -> None:
    pipe = load_pipeline(TINY, device="cpu", sampler="sde", flow_shift=7.0, positions="yarn", frames=129)
    expected = shapes.build_transformer(num_layers=2)
    extend_positions(expected, 33, 9, "yarn")
    assert torch.equal(pipe.transformer.rope.freqs_cos, expected.rope.freqs_cos)
    assert isinstance(pipe.scheduler, DPMSolverMultistepScheduler) and pipe.scheduler.config.flow_shift == 7.0
    assert pipe.transformer.dtype == torch.float32 and pipe.progress_bar(range(1)).disable and not is_gated(pipe)
    half = load_pipeline(TINY, device="cpu", dtype="bfloat16").transformer
    assert half.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16


def test_a_model_that_does_not_say_how_many_frames_it_makes() -> None:
    class Silent(Tiny):
        def default(self, argument: str) -> Any:
            return None

    with pytest.raises(ValueError, match="positions 'yarn': WanPipeline has no default number of frames; give both"):
        load_pipeline(Silent("shapes"), device="cpu", positions="yarn")


def test_arguments_are_fitted_to_vae_and_tokenizer() -> None:
    pipe = tiny_lora.pipeline()
    assert fit_arguments(pipe, {"num_frames": 10, "seed": 1}) == {
        "num_frames": 9,
        "seed": 1,
        "max_sequence_length": shapes.MAX_WORDS,
    }
    assert "num_frames" not in fit_arguments(pipe, {})


class Called(SimpleNamespace):
    """A pipeline with a transformer and the settings of a VAE."""

    def __call__(self, num_frames: int = 1) -> None: ...


@ignores_warnings
@pytest.mark.parametrize(
    ("name", "vae", "frames", "used"),
    [
        ("AllegroTransformer3DModel", {"temporal_compression_ratio": 4}, 87, 87),  # any number
        ("AllegroTransformer3DModel", {"temporal_compression_ratio": 4}, 88, 88),
        ("MiniMaxH3Transformer3DModel", None, 100, 107),
        ("LTXVideoTransformer3DModel", {"temporal_compression_ratio": None}, 100, 97),  # the family's
        ("LTXVideoTransformer3DModel", {"temporal_compression_ratio": 4, "spatial_compression_ratio": 8}, 100, 101),
        ("WanTransformer3DModel", {"scale_factor_temporal": 4, "scale_factor_spatial": 8}, 100, 101),
    ],
)
def test_the_model_decides_which_frames_fit(name: str, vae: dict[str, Any] | None, frames: int, used: int) -> None:
    parts = {} if vae is None else {"vae": SimpleNamespace(config=vae)}
    pipe = Called(transformer=twin(name).build(), **parts)
    assert fit_arguments(pipe, {"num_frames": frames})["num_frames"] == used


def test_devices() -> None:
    assert check_device("cpu") == "cpu" and check_device(None) == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ValueError, match="device 'cuda:99' is not available; try cpu or cuda"):
        check_device("cuda:99")


def test_the_first_recipe_that_is_known() -> None:
    assert first_recipe([]) == LoraRecipe()
    recipe = first_recipe(["shapes-long"])
    assert recipe.is_known and replace(recipe, version=None) != LoraRecipe()
    assert recipe.base is not None and find_model(recipe.base).longer_frames == recipe.frames
