"""FramePack: which section of a clip a step trains, and what its call is told of the others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from trained_families import CASES
from twins import ignores_warnings

from vidsparse.finetune import Bucket, drawn_clips
from vidsparse.finetune.data.encoders import Encoders
from vidsparse.finetune.draws.example import Example
from vidsparse.finetune.families import task_for
from vidsparse.finetune.families.framepack import SECTION, FramepackTask
from vidsparse.finetune.families.task import MAIN, first_frame
from vidsparse.finetune.noise import shift_of
from vidsparse.generation.frames import fit_frames

pytestmark = [ignores_warnings, pytest.mark.filterwarnings("ignore::FutureWarning")]
WORDS = CASES["framepack"].call["max_sequence_length"]


def example_of(pipe: Any, bucket: Bucket, place: float = 0.0) -> Example:
    """A clip whose noise of the image's first number is `place`."""
    encoders, clip = Encoders(pipe), drawn_clips(1, bucket)[0]
    video, text = encoders.encode_video(clip.read()), encoders.encode_text(clip.caption)
    more = {name: x[None] for found in (video, text) for name, x in found.items() if name != MAIN}
    latents = video[MAIN][None]
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    noise[0, 0, 0, 0, 0] = place
    return Example(latents, noise, text[MAIN][None], torch.tensor([0.7]), more)


@pytest.mark.parametrize("sections", [1, 2, 5])
def test_each_section_is_called_as_the_pipeline_calls_it(sections: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that answers the target makes the clip, so that each call has the clip's own sections as history."""
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    pipe, bucket = CASES["framepack"].pipe(), Bucket(1 + 36 * sections, 32, 32)
    task, example, calls = task_for(pipe), example_of(pipe, bucket), list[dict[str, Any]]()
    # The number whose share of a normal distribution is the middle of each section, in the order they are made.
    shares = [(place + 0.5) / sections for place in reversed(range(sections))]
    examples = [example_of(pipe, bucket, float(torch.special.ndtri(torch.tensor(share)))) for share in shares]

    def perfect(**named: Any) -> Any:
        calls.append(named)
        start = 1 + SECTION * (sections - len(calls))
        noisy, clean = named["hidden_states"], example.latents[:, :, start : start + SECTION]
        return ((noisy - clean) / pipe.scheduler.sigmas[0],)

    monkeypatch.setattr(pipe.transformer, "forward", perfect)
    clip, size = drawn_clips(1, bucket)[0], {"height": bucket.height, "width": bucket.width}
    asked = {"image": first_frame(clip.read()), "prompt": clip.caption, "max_sequence_length": WORDS}
    made = pipe(**asked, **size, num_frames=task.asked(bucket.frames), num_inference_steps=1, output_type="latent")
    torch.testing.assert_close(made.frames[-1][:, :, 1:], example.latents[:, :, 1:], atol=1e-4, rtol=1e-4)
    assert len(calls) == sections
    for call, one in zip(calls, examples, strict=True):
        ours = task.arguments(task.noisy(one), one, torch.float32)
        for name in ours:
            if name.startswith("indices"):
                assert torch.equal(ours[name], call[name]), name
            elif name.startswith("latents"):
                torch.testing.assert_close(ours[name], call[name], atol=1e-4, rtol=1e-4)


def test_every_section_is_trained_alike_and_its_noise_is_its_own() -> None:
    pipe = CASES["framepack"].pipe()
    task = task_for(pipe)
    assert isinstance(task, FramepackTask)
    latents = torch.arange(1.0, 29)[None, None, :, None, None].expand(1, 4, 28, 2, 2)
    counts = [0, 0, 0]
    for seed in range(300):
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed))
        example = Example(latents, noise, torch.empty(0), torch.tensor([0.0]))
        shown = task.noisy(example)[0, 0, :, 0, 0]  # without noise: the frames themselves
        number = int(shown[0] - 2) // SECTION
        assert shown.tolist() == [2 + SECTION * number + i for i in range(SECTION)]
        assert torch.equal(task.target(example), (noise - latents)[:, :, 1 + SECTION * number :][:, :, :SECTION])
        counts[number] += 1
    assert min(counts) > 75


def test_lengths_are_those_that_the_pipeline_makes() -> None:
    task = FramepackTask(config={"patch_size": 2})
    assert task.frame_step == 36 and fit_frames(129, task.frame_step) == 145
    for frames in (37, 73, 109, 145, 181):
        asked = task.asked(frames)
        sections = max(1, (asked + 32) // 33)  # as the pipeline counts them
        assert asked % 4 == 1 and 1 + 36 * sections == frames
    for frames, message in ((129, "sections of 36 in time; use 109 or 145"), (1, "use 37 or 73")):
        with pytest.raises(ValueError, match=message):
            Bucket(frames, 64, 64).check_for(task)
    Bucket(37, 64, 64).check_for(task)


def test_the_shift_grows_with_the_size_of_a_section_up_to_seven() -> None:
    pipe = CASES["framepack"].pipe()
    task = task_for(pipe)
    assert task.shift(pipe.scheduler, (37, 90, 160)) == shift_of(pipe.scheduler) == 7.0
    pipe.scheduler.register_to_config(use_dynamic_shifting=True)
    assert task.shift(pipe.scheduler, (10, 16, 16)) == task.shift(pipe.scheduler, (37, 16, 16)) < 2
    assert task.shift(pipe.scheduler, (10, 90, 160)) == pytest.approx(7.0)


def test_a_checkpoint_that_begins_with_the_first_section_is_refused() -> None:
    pipe = CASES["framepack"].pipe()
    pipe.transformer.register_to_config(_name_or_path="lllyasviel/FramePack_F1_I2V_HY_20250503")
    with pytest.raises(NotImplementedError, match="it begins with the first section"):
        task_for(pipe)
