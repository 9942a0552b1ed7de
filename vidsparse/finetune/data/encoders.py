"""The encoders of a pipeline: videos become latents and captions embeddings, as its transformer takes them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from vidsparse.finetune.data.clips import Clip
from vidsparse.finetune.data.fingerprint import fingerprint
from vidsparse.finetune.families import task_for
from vidsparse.finetune.families.task import first_frame


class Encoders:
    """Encodes for a pipeline, on the devices and in the dtypes of its VAE and its text encoders.

    Attributes:
        words: length to which captions are cut; None where the pipeline does not say.
        padded: length to which text is padded with zeros; None where each text has its own.

    Raises:
        NotImplementedError: a pipeline that cannot be trained.
    """

    def __init__(self, pipe: Any):
        self.pipe, self.task = pipe, task_for(pipe)
        self.words = self.task.words(pipe)
        self.padded = self.words if self.task.pads else None
        self._vae = fingerprint(pipe.vae), getattr(pipe.vae, "use_tiling", False)
        images = [part for part in self.parts("video") if part is not pipe.vae]
        # What a text-to-video pipeline encodes does not depend on the kind of its task.
        self._image = (self.task.family, *map(fingerprint, images)) if self.task.from_image else ()
        self._image += self.task.video_facts()
        self._text = *map(fingerprint, self.parts("text")), self.words, *self.task.text_facts()

    def parts(self, kind: str) -> list[Any]:
        """The modules that encode text or videos ("text", "video")."""
        names = self.task.text_parts if kind == "text" else self.task.video_parts
        return [part for name in names if (part := getattr(self.pipe, name, None)) is not None]

    def video_key(self, clip: Clip) -> str:
        """Hash of everything that decides the latents of a clip."""
        return _hash(clip.key, clip.bucket, self._vae, *self._image)

    def text_key(self, caption: str, seen: Clip | None = None) -> str:
        """Hash of everything that decides the embedding of a caption, beside the clip that its encoder sees."""
        cut = {} if self.words is None else {"truncation": True, "max_length": self.words}
        tokens = self.pipe.tokenizer(text=caption, **cut).input_ids
        beside = () if seen is None else (seen.key, seen.bucket)
        return _hash(caption, list(tokens), self._text, *beside)

    def encode_video(self, video: torch.Tensor) -> dict[str, torch.Tensor]:
        """Normalised latents, float32 [channels, latent frames, height, width], and what the first frame gives besides.

        Raises:
            ValueError: the VAE's latents are not finite.
        """
        return self.task.encode_video(self.pipe, video)

    def encode_text(self, caption: str, seen: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """The embedding of a caption, [words, width] in the text encoder's dtype, and what else the encoders give.

        Args:
            caption: of a video. seen: the video, where `TrainingTask.sees_image`.
        """
        if seen is None:
            return self.task.encode_text(self.pipe, caption, self.words)
        return self.task.encode_seen_text(self.pipe, caption, self.words, first_frame(seen))


@contextmanager
def moved(modules: Iterable[Any], device: torch.device | None) -> Iterator[None]:
    """Within the context, encoders are on a device, and on the CPU afterwards; None leaves them where they are."""
    if device is None:
        yield
        return
    modules = list(modules)
    try:
        for module in modules:
            module.to(device)
        yield
    finally:
        for module in modules:
            module.to("cpu")


def _hash(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
