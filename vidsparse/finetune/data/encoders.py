"""The two encoders of a pipeline: videos become latents and captions embeddings, as its transformer takes them."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from vidsparse.finetune.data.clips import Bucket, Clip
from vidsparse.finetune.data.fingerprint import fingerprint


def check_bucket(pipe: Any, bucket: Bucket) -> None:
    """Refuse a size that does not become whole latents of a `WanPipeline` and whole patches of them.

    Raises:
        ValueError: with sizes that fit.
    """
    transformer = pipe.transformer or pipe.transformer_2
    patch = transformer.config.patch_size[-1] if transformer else 1
    bucket.check(pipe.vae_scale_factor_temporal, pipe.vae_scale_factor_spatial * patch)


class WanEncoders:
    """Encodes for a `WanPipeline`, on the devices and in the dtypes of its VAE and its text encoder.

    Attributes:
        words: length to which the pipeline pads captions.

    Raises:
        NotImplementedError: a pipeline of another family.
    """

    def __init__(self, pipe: Any):
        if not any(kind.__name__ == "WanPipeline" for kind in type(pipe).__mro__):
            raise NotImplementedError(f"videos can be encoded for WanPipeline only, not for {type(pipe).__name__}")
        self.pipe = pipe
        self.words: int = inspect.signature(pipe.__call__).parameters["max_sequence_length"].default
        # Padding the text beyond the tokenizer's limit would only cost time.
        self.words = min(self.words, getattr(pipe.tokenizer, "model_max_length", sys.maxsize))
        self._vae = fingerprint(pipe.vae), getattr(pipe.vae, "use_tiling", False)
        self._text = fingerprint(pipe.text_encoder), self.words

    def video_key(self, clip: Clip) -> str:
        """Hash of everything that decides the latents of a clip."""
        return _hash(clip.key, clip.bucket, self._vae)

    def text_key(self, caption: str) -> str:
        """Hash of everything that decides the embedding of a caption."""
        tokens = self.pipe.tokenizer(caption, truncation=True, max_length=self.words).input_ids
        return _hash(caption, list(tokens), self._text)

    @torch.no_grad()
    def encode_video(self, video: torch.Tensor) -> torch.Tensor:
        """Normalised latents, float32 [channels, latent frames, height, width]: the VAE's mean, not a sample.

        Raises:
            ValueError: the VAE's latents are not finite.
        """
        vae = self.pipe.vae
        mean: torch.Tensor = vae.encode(video[None].to(_device(vae), vae.dtype)).latent_dist.mean[0].float().cpu()
        if not mean.isfinite().all():
            raise ValueError(f"the VAE gives latents that are not finite in {vae.dtype}; load it in float32")
        statistics = vae.config.latents_mean, vae.config.latents_std
        middle, spread = (torch.tensor(numbers)[:, None, None, None] for numbers in statistics)
        return (mean - middle) / spread

    @torch.no_grad()
    def encode_text(self, caption: str) -> torch.Tensor:
        """Embedding of a caption, [words, width] in the text encoder's dtype: zeros after the last word."""
        device = _device(self.pipe.text_encoder)
        asked = dict(do_classifier_free_guidance=False, max_sequence_length=self.words, device=device)
        embedding: torch.Tensor = self.pipe.encode_prompt(caption, **asked)[0][0]
        return embedding.cpu()


@contextmanager
def moved(module: Any, device: torch.device | None) -> Iterator[None]:
    """Within the context, an encoder is on a device, and on the CPU afterwards; None leaves it where it is."""
    if device is None:
        yield
        return
    module.to(device)
    try:
        yield
    finally:
        module.to("cpu")


def _device(module: Any) -> torch.device:
    """The device on which a model computes; with offloading it is not that of its weights."""
    device: torch.device = getattr(getattr(module, "_hf_hook", None), "execution_device", None) or module.device
    return device


def _hash(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
