"""What a whole training decides around its loop: what sample videos start from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from trained_families import CASES
from twins import ignores_warnings

from vidsparse import Dense
from vidsparse.finetune import Bucket, Settings, drawn_clips
from vidsparse.finetune.families.task import first_frame
from vidsparse.finetune.job import _prompts

pytestmark = ignores_warnings


def broken() -> torch.Tensor:
    raise ValueError("it is damaged")


def test_sample_videos_start_from_the_first_clip_that_can_be_read() -> None:
    pipe, device = CASES["ltx-image"].pipe(), torch.device("cpu")
    clips = drawn_clips(3, Bucket(9, 32, 32))
    clips[0] = replace(clips[0], read=broken, path=Path("a.mp4"))
    examples: Any = SimpleNamespace(captions=[clips[1].caption, clips[2].caption])
    (found,) = _prompts(pipe, Settings(Dense()), clips, examples, device)
    assert found.text == clips[1].caption
    assert np.array_equal(np.array(found.image), np.array(first_frame(clips[1].read())))
    asked = _prompts(pipe, Settings(Dense(), sample_prompts=("one", "two")), clips, examples, device)
    assert [prompt.text for prompt in asked] == ["one", "two"] and all(prompt.image is not None for prompt in asked)
    with pytest.raises(ValueError, match=r"no clip can be read for the first frame of sample videos; a.mp4: it is dam"):
        _prompts(pipe, Settings(Dense()), clips[:1], examples, device)
