"""Clips of the `shapes` world, drawn when they are read: no files, and captions that are exact."""

from __future__ import annotations

import hashlib
import random
from functools import partial

from vidsparse.finetune.data.clips import Bucket, Clip
from vidsparse.shapes.render import render, training_example


def drawn_clips(count: int, bucket: Bucket, seed: int = 0) -> list[Clip]:
    """Draw scenes with their captions; none has a combination that `shapes` holds out for its examination.

    Objects keep moving through all frames, come back on the other side where they leave, and never cover each other.

    Args:
        count: of the clips; fewer of them are the first of more.
        bucket: their size. The world is a square, and a bucket that is none stretches it.
        seed: other numbers draw other clips.
    """
    clips = []
    for index in range(count):
        scene, paths = training_example(random.Random(f"{seed}-{index}"), bucket.frames)
        key = hashlib.sha256(repr((scene, paths, bucket)).encode()).hexdigest()
        read = partial(render, scene, paths, bucket.frames, bucket.height, bucket.width)
        clips.append(Clip(key, scene.caption, bucket, read))
    return clips
