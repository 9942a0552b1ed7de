"""Clips of the `shapes` world, drawn when they are read: without files, and with exact captions."""

from __future__ import annotations

import hashlib
import random
from functools import partial

from vidsparse.finetune.data.clips import Bucket, Clip
from vidsparse.shapes.render import render, training_example
from vidsparse.shapes.world import ENDLESS


def drawn_clips(count: int, bucket: Bucket, seed: int = 0) -> list[Clip]:
    """Draw scenes with their captions; none has a combination that `shapes` holds out for its evaluation.

    Objects move through all frames, return on the other side of the frame when they leave it, and never overlap.

    Args:
        count: number of clips; a smaller number gives the first ones of a larger number.
        bucket: their size. The world is a square, which another bucket stretches.
        seed: of the scenes.
    """
    clips = []
    for index in range(count):
        scene, paths = training_example(random.Random(f"{seed}-{index}"), bucket.frames, world=ENDLESS)
        key = hashlib.sha256(repr((scene, paths, bucket, ENDLESS)).encode()).hexdigest()
        read = partial(render, scene, paths, bucket.frames, bucket.height, bucket.width, ENDLESS)
        clips.append(Clip(key, scene.caption, bucket, read))
    return clips
