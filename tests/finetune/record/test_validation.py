"""Held-out videos: which they are, and that their loss is the same number whenever it is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import assert_same, lines, train

from vidsparse.finetune import Bucket, Clip, drawn_clips
from vidsparse.finetune.families.task import MAIN
from vidsparse.finetune.process.groups import Groups
from vidsparse.finetune.record.validation import Validation, hold_out

BUCKET = Bucket(9, 16, 16)


def clip(key: str, path: str | None = None) -> Clip:
    return Clip(key, "", BUCKET, lambda: torch.zeros(3, 9, 16, 16), None if path is None else Path(path))


def test_a_share_is_held_out_by_content() -> None:
    clips = drawn_clips(40, BUCKET)
    train_on, held = hold_out(clips, 0.1)
    assert len(held) == 4 and {c.key for c in train_on}.isdisjoint(c.key for c in held)
    assert [c.key for c in train_on] == [c.key for c in clips if c in train_on], "the order stays"
    assert {c.key for c in hold_out(clips[::-1], 0.1)[1]} == {c.key for c in held}
    assert hold_out(clips, 0.0) == (clips, [])
    assert len(hold_out(clips, 0.001)[1]) == 1


def test_clips_of_one_file_and_copies_are_on_one_side() -> None:
    clips = [clip(f"{file}-{part}", f"{file}.mp4") for file in range(10) for part in range(3)]
    clips += [clip("0-0", "copy.mp4"), clip("copy-1", "copy.mp4")]
    train_on, held = hold_out(clips, 0.3)
    assert held and {c.path for c in train_on}.isdisjoint(c.path for c in held)
    assert {c.key for c in train_on}.isdisjoint(c.key for c in held)


@pytest.mark.parametrize(("share", "message"), [(1.0, "must be in"), (-0.1, "must be in"), (0.9, "leaves none")])
def test_shares_that_leave_nothing(share: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hold_out([clip("a"), clip("b")], share)


class Examples:
    """Videos by their names."""

    def __init__(self, *names: str):
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return self.names[index]

    def video(self, index: int) -> dict[str, torch.Tensor]:
        return {MAIN: torch.zeros(2, 3, 4, 4)}

    def caption(self, index: int) -> dict[str, torch.Tensor]:
        return {MAIN: torch.zeros(2, 3)}


def test_noise_depends_on_the_video_and_the_level() -> None:
    data: Any = Examples("a", "b")
    validation = Validation(data, (0.0, 0.9), seed=1)
    assert validation.levels == pytest.approx((0.09, 0.27, 0.45, 0.63, 0.81))
    noises = [validation.example(i, level).noise for i in range(2) for level in validation.levels]
    assert all(not torch.equal(a, b) for n, a in enumerate(noises) for b in noises[:n])
    again = Validation(data, (0.0, 0.9), seed=1, groups=Groups(1, 1, 2)).example(1, validation.levels[0])
    assert torch.equal(again.noise, noises[5]) and float(again.level) == pytest.approx(0.09)
    others: Any = Examples("c", "b", "d", "a")
    among = Validation(others, (0.0, 0.9), seed=1)
    for index, place in ((1, 1), (3, 0)):  # the same videos in another set
        found, expected = (one.example(i, 0.45).noise for one, i in ((among, index), (validation, place)))
        assert torch.equal(found, expected)


def test_the_loss_is_logged_the_same_on_resume_and_leaves_no_trace(tmp_path: Path, cache: Path) -> None:
    asked: dict[str, Any] = dict(videos=6, validation_share=0.3, ema=0.9, validate_every=2)
    whole = train(tmp_path / "whole", cache, steps=6, dropout=0.2, **asked)
    train(tmp_path / "parts", cache, steps=4, dropout=0.2, **asked)
    assert_same(train(tmp_path / "parts", cache, steps=6, dropout=0.2, **asked), whole)
    found = {}
    for name in ("whole", "parts"):
        found[name] = {x["step"]: x for x in lines(tmp_path / name) if "validation_loss" in x}
    assert list(found["whole"]) == [0, 2, 4, 6] and found["whole"] == found["parts"]
    losses = [line["validation_loss"] for line in found["whole"].values()]
    assert losses[-1] < losses[0] and len(found["whole"][0]["validation_loss_by_level"]) == 5
    # The same videos without the measurement give the same weights.
    held = train(tmp_path / "rare", cache, steps=6, dropout=0.2, **asked | {"validate_every": 100, "samples": False})
    assert_same(held, whole)
