"""Latents and prompt embeddings on disk, computed once per video, caption and model for all trainings."""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn.functional import pad

from vidsparse.finetune.data import tensor_file
from vidsparse.finetune.data.clips import Clip, Skipped
from vidsparse.finetune.data.encoders import Encoders, moved
from vidsparse.finetune.families.task import MAIN

AHEAD = 2  # videos that are decoded while one is encoded


class Texts(NamedTuple):
    """The files of an example's embeddings: of its caption, and of the empty one."""

    captioned: Path
    empty: Path


class Encoded:
    """The encoded examples of a training, read from disk one by one.

    Attributes:
        captions: of the examples.
        words: length to which their embeddings are padded with zeros; None: each has its own.
        frames: of the longest example.
        fingerprint: hash of the data: equal ones give a training the same numbers.
    """

    def __init__(self, captions: list[str], latents: list[Path], texts: list[Texts], words: int | None, frames: int):
        self.captions, self.words, self.frames = captions, words, frames
        self._latents, self._texts = latents, texts
        # The file names are hashes of everything that decides their content.
        names = [(path.name, text.captioned.name) for path, text in zip(latents, texts, strict=True)]
        self.fingerprint = hashlib.sha256(repr(names).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.captions)

    def name(self, index: int) -> str:
        """A hash of the video: examples of the same video have the same, in any set."""
        return self._latents[index].stem

    def video(self, index: int) -> dict[str, torch.Tensor]:
        """What an example's video gives the transformer, by name; under `MAIN` its latents, read once with the rest."""
        return tensor_file.read(self._latents[index])

    def caption(self, index: int) -> dict[str, torch.Tensor]:
        """What an example's caption gives the transformer, by name; under `MAIN` its embedding, see `text`."""
        return self._said(self._texts[index].captioned)

    def no_caption(self, index: int) -> dict[str, torch.Tensor]:
        """What the empty caption gives the transformer in the place of an example's own, by name."""
        return self._said(self._texts[index].empty)

    def latents(self, index: int) -> torch.Tensor:
        """float32 [channels, latent frames, latent height, latent width], normalised for the transformer."""
        return self.video(index)[MAIN]

    @cached_property
    def view(self) -> tuple[int, int, int]:
        """Latent frames, height and width of the largest example."""
        sizes = {shape[1:] for path in self._latents if (shape := tensor_file.shape(path)) is not None}
        frames, height, width = max(sizes, key=math.prod)
        return frames, height, width

    def text(self, index: int) -> torch.Tensor:
        """Embedding of the caption, [words, width] in the text encoder's dtype, padded as the pipeline does."""
        return self.caption(index)[MAIN]

    def _said(self, path: Path) -> dict[str, torch.Tensor]:
        said = tensor_file.read(path)
        if self.words is not None:
            said[MAIN] = pad(said[MAIN], (0, 0, 0, self.words - len(said[MAIN])))
        return said


def encode(
    pipe: Any,
    clips: Sequence[Clip],
    folder: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
    rank: int = 0,
    world: int = 1,
    wait: Callable[[], None] = lambda: None,
    device: torch.device | None = None,
) -> tuple[Encoded, list[Skipped]]:
    """Encode the captions and then the clips that the cache lacks. The encoders are not needed afterwards.

    Args:
        pipe: a pipeline that can be trained.
        clips: the clips of the training.
        folder: the cache, created if it does not exist. Trainings may share it, even at the same time.
        progress: called with how many items this process has encoded, and how many it has to encode.
        rank, world: this process encodes every `world`-th video from `rank` on.
        wait: returns when all processes have called it.
        device: where the encoders compute; each is there only while it has something to encode, and on the CPU
            afterwards. None: where they are.

    Returns:
        The examples of all processes in the order of the clips, and the files of those that could not be read.

    Raises:
        NotImplementedError: a pipeline of another family.
        ValueError: no clips, no readable clip, a size that the VAE does not take, latents that are not finite.
        OSError: the disk is full; files that are already encoded are kept.
    """
    if not clips:
        raise ValueError("there are no clips to encode")
    encoders = Encoders(pipe)
    for clip in clips:
        clip.bucket.check_for(encoders.task)
    folder.mkdir(parents=True, exist_ok=True)
    tensor_file.sweep(folder)
    latents = [folder / f"latents-{encoders.video_key(clip)}.safetensors" for clip in clips]
    texts, asked = _texts(encoders, clips, folder)

    # Clips with several captions, or equal ones, have one file.
    share = list(dict(zip(latents, clips, strict=True)).items())[rank::world]
    unseen = {path: clip for path, clip in share if tensor_file.shape(path) is None}
    unread = {path: asked[path] for path in list(asked)[rank::world] if tensor_file.shape(path) is None}
    total = len(unseen) + len(unread)
    with moved(encoders.parts("text"), device if unread else None):
        for done, (path, (caption, seen)) in enumerate(unread.items()):
            progress(done, total)
            video = None if seen is None else _read(seen)
            if isinstance(video, ValueError):
                _reason(path).write_text(str(video), encoding="utf-8")
                continue
            said = encoders.encode_text(caption, video)
            if encoders.padded is not None:
                said[MAIN] = _without_padding(said[MAIN])
            tensor_file.write(path, said)
            _reason(path).unlink(missing_ok=True)
    with moved(encoders.parts("video"), device if unseen else None):
        videos = read_ahead(list(unseen.values()))
        for done, (path, video) in enumerate(zip(unseen, videos, strict=True), len(unread)):
            progress(done, total)
            if isinstance(video, ValueError):
                _reason(path).write_text(str(video), encoding="utf-8")  # for the other processes
            else:
                tensor_file.write(path, encoders.encode_video(video))
                _reason(path).unlink(missing_ok=True)
    progress(total, total)
    wait()

    kept, skipped = list[int](), dict[Path, Skipped]()
    is_whole = cache(lambda path: tensor_file.shape(path) is not None)
    for index, (clip, path) in enumerate(zip(clips, latents, strict=True)):
        lacking = [file for file in (path, *texts[index]) if not is_whole(file)]
        if not lacking:
            kept += [index] * clip.repeats
        elif clip.path is not None:
            skipped[path] = Skipped(clip.path, _reason(lacking[0]).read_text(encoding="utf-8"))
    if not kept:
        first = next(iter(skipped.values()))
        raise ValueError(f"none of the {len(clips)} videos can be read; {first.path}: {first.reason}")
    longest = max(clips[index].bucket.frames for index in kept)
    examples = [clips[i].caption for i in kept], [latents[i] for i in kept], [texts[i] for i in kept]
    return Encoded(*examples, encoders.padded, longest), list(skipped.values())


def _texts(
    encoders: Encoders, clips: Sequence[Clip], folder: Path
) -> tuple[list[Texts], dict[Path, tuple[str, Clip | None]]]:
    """The files of each clip's embeddings, and what each file is of: a caption, and the clip that its encoder sees."""
    asked: dict[Path, tuple[str, Clip | None]] = {}

    @cache
    def file(caption: str, seen: Clip | None) -> Path:
        path = folder / f"text-{encoders.text_key(caption, seen)}.safetensors"
        asked.setdefault(path, (caption, seen))
        return path

    found = []
    for clip in clips:
        seen = clip if encoders.task.sees_image else None
        found.append(Texts(file(clip.caption, seen), file("", seen)))
    return found, asked


def read_ahead(clips: Sequence[Clip]) -> Iterator[torch.Tensor | ValueError]:
    """The videos of clips in their order, or why one cannot be read; the next are decoded while one is worked on."""
    with ThreadPoolExecutor(AHEAD) as pool:
        coming = deque[Future[torch.Tensor | ValueError]]()
        try:
            for clip in clips:
                coming.append(pool.submit(_read, clip))
                if len(coming) > AHEAD:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()
        finally:
            for future in coming:
                future.cancel()


def _read(clip: Clip) -> torch.Tensor | ValueError:
    try:
        return clip.read()
    except ValueError as error:
        if clip.path is None:
            raise  # no file to blame
        return error


def _reason(path: Path) -> Path:
    """The path of the text file that records why a clip could not be encoded."""
    return path.with_suffix(".txt")


def _without_padding(embedding: torch.Tensor) -> torch.Tensor:
    """The rows up to the last that is not zero: most captions are far shorter than their padding."""
    said = embedding.any(dim=1).nonzero()
    return embedding[: int(said.max()) + 1 if len(said) else 0]
