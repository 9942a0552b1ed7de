"""HunyuanVideo from an image: captions that are encoded beside the image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from trained_families import CASES
from trained_hunyuan_image import TEMPLATE
from twins import ignores_warnings

from vidsparse.finetune import drawn_clips
from vidsparse.finetune.data.cache import encode
from vidsparse.finetune.families import task_for
from vidsparse.finetune.families.task import MAIN, first_frame
from vidsparse.shapes.model import MAX_WORDS

pytestmark = [ignores_warnings, pytest.mark.filterwarnings("ignore::FutureWarning")]
CASE = CASES["hunyuan-image"]


def unreadable() -> torch.Tensor:
    raise ValueError("it is damaged")


@pytest.fixture(scope="module")
def pipe() -> Any:
    return CASE.pipe()


def test_each_clip_has_its_own_embeddings_also_of_the_empty_caption(pipe: Any, tmp_path: Path) -> None:
    first, second = drawn_clips(2, CASE.bucket)
    clips = [first, replace(second, caption=first.caption), replace(first, caption="a red square")]
    encoded, skipped = encode(pipe, clips, tmp_path)
    assert skipped == [] and len(list(tmp_path.glob("text-*.safetensors"))) == 5
    for index, clip in enumerate(clips):
        for caption, found in ((clip.caption, encoded.caption(index)), ("", encoded.no_caption(index))):
            with torch.no_grad():
                text, pooled, mask = pipe.encode_prompt(
                    first_frame(clip.read()), caption, prompt_template=TEMPLATE, max_sequence_length=MAX_WORDS
                )
            torch.testing.assert_close(found, {MAIN: text[0], "pooled": pooled[0], "mask": mask[0]})
    assert not torch.allclose(encoded.text(0), encoded.text(1)), "the image is another"


def test_a_clip_that_cannot_be_read_is_left_out_by_name(pipe: Any, tmp_path: Path) -> None:
    good, bad = drawn_clips(2, CASE.bucket)
    path = tmp_path / "bad.mp4"
    for again in range(2):
        encoded, skipped = encode(pipe, [replace(bad, read=unreadable, path=path), good], tmp_path / "cache")
        assert [(one.path, one.reason) for one in skipped] == [(path, "it is damaged")], again
        assert encoded.captions == [good.caption]
    encoded, skipped = encode(pipe, [bad, good], tmp_path / "cache")
    assert skipped == [] and not list((tmp_path / "cache").glob("*.txt"))


def test_a_clip_whose_latents_alone_are_kept_is_left_out_too(pipe: Any, tmp_path: Path) -> None:
    """Another caption of a clip that is in the cache, once its file is damaged."""
    good, clip = drawn_clips(2, CASE.bucket)
    encode(pipe, [clip], tmp_path)
    other = replace(clip, caption="a red square", read=unreadable, path=tmp_path / "bad.mp4")
    encoded, skipped = encode(pipe, [other, good], tmp_path)
    assert [one.reason for one in skipped] == ["it is damaged"] and encoded.captions == [good.caption]


def test_a_transformer_without_a_place_for_the_image_is_refused(pipe: Any) -> None:
    other = CASE.pipe()
    other.transformer.register_to_config(image_condition_type=None)
    with pytest.raises(NotImplementedError, match=r"it takes no image \(image_condition_type=None\)"):
        task_for(other)
