"""LTX-2: the sound that a training of the video leaves out."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from diffusers.pipelines.ltx2 import pipeline_ltx2_image2video, utils
from trained_families import CASES
from twins import ignores_warnings

from vidsparse import Dense
from vidsparse.finetune import Settings, check_pipeline, drawn_clips
from vidsparse.finetune.data.encoders import Encoders
from vidsparse.finetune.families import task_for
from vidsparse.finetune.families.ltx2 import LTX2ImageTask
from vidsparse.finetune.families.task import first_frame

pytestmark = [ignores_warnings, pytest.mark.filterwarnings("ignore::FutureWarning")]


@pytest.mark.parametrize("name", ["ltx2", "ltx2.3"])
def test_the_video_does_not_see_the_sound(name: str) -> None:
    pipe = CASES[name].pipe()
    task = task_for(pipe)
    example = task.blank(dict(pipe.transformer.config), (2, 2, 2), 5)
    noise = torch.Generator().manual_seed(0)
    for tensor in (example.latents, example.noise, example.text, *example.more.values()):
        tensor.normal_(generator=noise)
    example.level.fill_(0.5)
    example.more["mask"].fill_(1)
    call = task.arguments(task.noisy(example), example, torch.float32)
    assert not call["audio_hidden_states"].any()

    def answer(**changes: Any) -> torch.Tensor:
        with torch.no_grad():
            out: torch.Tensor = pipe.transformer(**call | changes, return_dict=False)[0]
        return out

    silent, loud = answer(), answer(audio_hidden_states=torch.randn(call["audio_hidden_states"].shape, generator=noise))
    assert torch.equal(silent, loud)
    assert not torch.equal(silent, answer(isolate_modalities=False)), "the sound would be heard"


def test_layers_of_the_sound_are_no_targets() -> None:
    pipe = CASES["ltx2"].pipe()
    check_pipeline(pipe, Settings(Dense(), rank=2))
    with pytest.raises(ValueError, match=r"does not reach \(6, such as transformer_blocks\.0\.audio_attn1\.to_q"):
        check_pipeline(pipe, Settings(Dense(), rank=2, targets=("to_q",), exclude=("audio_to_video_attn.to_q",)))
    with pytest.raises(ValueError, match="give exclude=") as refused:
        check_pipeline(pipe, Settings(Dense(), rank=2, targets="all-linear"))
    found = re.search(r"exclude='(.*)'", str(refused.value))
    assert found is not None
    check_pipeline(pipe, Settings(Dense(), rank=2, targets="all-linear", exclude=found[1]))


def test_the_image_is_compressed_as_in_a_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the pipeline's own function and default, which the tests replace: PyAV is not among their packages."""
    pipe, clip = CASES["ltx2-image"].pipe(), drawn_clips(1, CASES["ltx2-image"].bucket)[0]
    seen: list[tuple[int, int]] = []

    def darker(image: Any, crf: int) -> Any:
        seen.append((crf, int(image.sum())))
        return image // 2

    for place in (utils, pipeline_ltx2_image2video):
        monkeypatch.setattr(place, "apply_image_conditioning_crf", darker)
    first = Encoders(pipe).encode_video(clip.read())["first"]
    calls: list[torch.Tensor] = []
    pipe.transformer.register_forward_pre_hook(
        lambda m, a, named: calls.append(named["hidden_states"]), with_kwargs=True
    )
    size = {"height": clip.bucket.height, "width": clip.bucket.width, "num_frames": clip.bucket.frames}
    image = first_frame(clip.read())
    pipe(image, clip.caption, **size, num_inference_steps=1, output_type="latent", **CASES["ltx2-image"].call)
    tokens = first[0].numel()
    torch.testing.assert_close(calls[0][0, :tokens], first.flatten(1).T)
    assert len(seen) == 2 and seen[0] == seen[1]


def test_the_package_that_compresses_images_is_asked_for_first(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = CASES["ltx2-image"].pipe()
    monkeypatch.setattr(LTX2ImageTask, "packages", ("not_av",))
    with pytest.raises(ImportError, match="LTX2ImageToVideoPipeline needs not_av to be trained: pip install not_av"):
        check_pipeline(pipe, Settings(Dense(), rank=2))
    monkeypatch.undo()
    assert LTX2ImageTask.packages == ("av",)
