"""What a model family learns: how its data are encoded, how its transformer is called, and what it should answer."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, ClassVar

import torch

from vidsparse.finetune.draws.example import Example
from vidsparse.finetune.draws.levels import UNIFORM
from vidsparse.finetune.noise import generation_levels, shift_of
from vidsparse.runtime.adapter import TRAIN_TIMESTEPS

Tensors = dict[str, torch.Tensor]
View = tuple[int, int, int]

# The name of the main tensor among those of a video or a caption; all others go by the names that `arguments` reads.
MAIN = "tensor"
CAPTION_DROPOUT = 0.1  # of a model with classifier-free guidance
# The projections of attention, as most transformers of diffusers name them.
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


@dataclass(frozen=True)
class TrainingTask:
    """Flow matching: at level s the latents are (1 - s) x + s n, the answer is n - x, and the timestep is 1000 s.

    A family derives from it. Latents are [channels, frames, height, width] in the data, with a batch of one before
    them in an `Example`.

    Attributes:
        config: settings of the transformer.
        pipeline: settings of the pipeline.
        scheduler: of the pipeline.
        stride: frames, and pixels in height and width, that a latent covers.
        family: its name. pipelines: classes of diffusers that it trains.
        from_image: whether videos start from an image: each clip then starts from its own first frame.
        prediction: what the transformer predicts: "flow" or "v_prediction".
        text_parts, video_parts: parts of the pipeline that encode captions and videos.
        pads: whether the pipeline pads text with zeros up to a fixed length.
        embeds_prompts: whether embeddings of text are all that `pipe(...)` needs for a sample video.
        sees_image: whether the text encoder also sees the first frame; `encode_seen_text` then encodes captions.
        section: latent frames that a generation makes at a time; a clip has one more than a multiple of these.
        targets: endings of the names of the layers that a LoRA changes unless others are asked for.
        timestep_sampling: density of the noise levels that the family is trained with, see `LevelSampling`.
        untrained: a regular expression of layers that the training's calls do not reach; None: they reach all.
        packages: modules that must be there besides those of every training.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    pipeline: Mapping[str, Any] = field(default_factory=dict)
    scheduler: Any = None
    stride: tuple[int, int] = (4, 8)

    family: ClassVar[str]
    pipelines: ClassVar[tuple[str, ...]]
    from_image: ClassVar[bool] = False
    prediction: ClassVar[str] = "flow"
    text_parts: ClassVar[tuple[str, ...]] = ("text_encoder",)
    video_parts: ClassVar[tuple[str, ...]] = ("vae",)
    pads: ClassVar[bool] = False
    embeds_prompts: ClassVar[bool] = False
    sees_image: ClassVar[bool] = False
    section: ClassVar[int] = 1
    targets: ClassVar[tuple[str, ...]] = ATTENTION
    timestep_sampling: ClassVar[str] = UNIFORM.kind
    untrained: ClassVar[str | None] = None
    packages: ClassVar[tuple[str, ...]] = ()

    def refusal(self) -> str | None:
        """Why a model of these settings cannot be trained; None where it can."""
        return None

    def check_packages(self) -> None:
        """Refuse a training for which a package is missing.

        Raises:
            ImportError: with the command that installs it.
        """
        if missing := [name for name in self.packages if find_spec(name) is None]:
            raise ImportError(
                f"{self.pipelines[0]} needs {' and '.join(missing)} to be trained: pip install {' '.join(missing)}"
            )

    @property
    def caption_dropout(self) -> float:
        """The fraction of the captions that a training leaves out: none where guidance is an input of the model."""
        return 0.0 if self.config.get("guidance_embeds") else CAPTION_DROPOUT

    @property
    def side(self) -> int:
        """Pixels that a token covers in height and in width."""
        patch = self.config.get("patch_size", 1)
        return self.stride[1] * int(patch if isinstance(patch, int) else patch[-1])

    def view(self, frames: int, height: int, width: int) -> View:
        """Latent frames, height and width of a video of so many frames and pixels."""
        return (frames - 1) // self.stride[0] + 1, height // self.stride[1], width // self.stride[1]

    @property
    def frame_step(self) -> int:
        """Frames that a section covers."""
        return self.stride[0] * self.section

    def called_with(self, frames: int) -> int:
        """Frames of a clip of so many that one call of the transformer has."""
        return frames

    def asked(self, frames: int) -> int:
        """The `num_frames` with which the pipeline makes videos as long as a clip of so many frames."""
        return frames

    # Data.

    def words(self, pipe: Any) -> int | None:
        """The length to which captions are cut; None where the pipeline has no such argument."""
        asked = inspect.signature(type(pipe).__call__).parameters.get("max_sequence_length")
        if asked is None:
            return None
        # Padding the text beyond the tokenizer's limit would only cost time.
        return int(min(asked.default, getattr(pipe.tokenizer, "model_max_length", sys.maxsize)))

    def video_facts(self) -> tuple[Any, ...]:
        """What decides what `encode_video` gives besides the encoders and the video, for the key of the cache."""
        return ()

    def text_facts(self) -> tuple[Any, ...]:
        """What decides what `encode_text` gives besides the encoders and the caption, for the key of the cache."""
        return ()

    def encode_video(self, pipe: Any, video: torch.Tensor) -> Tensors:
        """Normalised latents float32, the mean of the VAE and not a sample, and what the image gives besides.

        Args:
            pipe: a pipeline of the family.
            video: float32 [3, frames, height, width] in [-1, 1].

        Raises:
            ValueError: latents that are not finite.
        """
        return {MAIN: latents_of(pipe.vae, video), **self.condition(pipe, video)}

    def condition(self, pipe: Any, video: torch.Tensor) -> Tensors:
        """What the first frame of a video gives the transformer, by name, without a batch."""
        del pipe, video
        return {}

    def encode_text(self, pipe: Any, caption: str, words: int | None) -> Tensors:
        """The embedding of a caption, and what else its encoders give, without a batch."""
        raise NotImplementedError

    def encode_seen_text(self, pipe: Any, caption: str, words: int | None, image: Any) -> Tensors:
        """The same, where `sees_image`, of a caption beside the image that its video starts from."""
        raise NotImplementedError

    # One call.

    def noisy(self, example: Example) -> torch.Tensor:
        """The latents with the noise of the example's level, float32."""
        return torch.lerp(example.latents, example.noise, example.level)

    def arguments(self, noisy: torch.Tensor, example: Example, dtype: torch.dtype) -> dict[str, Any]:
        """The arguments of a call of the transformer, whose inputs are of `dtype`."""
        return {
            "hidden_states": noisy.to(dtype),
            "timestep": TRAIN_TIMESTEPS * example.level,
            "encoder_hidden_states": example.text.to(dtype),
        }

    def predicted(self, answer: torch.Tensor, example: Example) -> torch.Tensor:
        """What of the transformer's answer is compared with the target, in the target's shape."""
        del example
        return answer

    def target(self, example: Example) -> torch.Tensor:
        """What the transformer should answer, float32."""
        return example.noise - example.latents

    def snr(self, level: torch.Tensor) -> torch.Tensor:
        """Signal-to-noise ratio of a noise level."""
        return ((1 - level) / level) ** 2

    # Noise levels.

    def shift(self, scheduler: Any, view: View) -> float:
        """The shift of the noise levels of a video.

        Args:
            scheduler: of a generation.
            view: latent frames, height and width.

        Raises:
            NotImplementedError: another kind of scheduler.
        """
        del view
        return shift_of(scheduler)

    def levels(self, scheduler: Any, steps: int, view: View) -> Sequence[float]:
        """The noise levels of a generation, falling from about 1."""
        del view
        return generation_levels(scheduler, steps)

    # Forecasts.

    def blank(self, config: Mapping[str, Any], view: View, words: int) -> Example:
        """An example of a size whose numbers mean nothing, for a forecast.

        Args:
            config: of the transformer. view: latent frames, height and width. words: of the text.
        """
        latents = torch.empty(1, self.latent_channels(config), *view)
        text = torch.empty(1, words, self.text_width(config))
        return Example(latents, torch.empty_like(latents), text, torch.empty(1), self.blank_inputs(config, view, words))

    def latent_channels(self, config: Mapping[str, Any]) -> int:
        """Channels of the latents."""
        return int(config.get("out_channels") or config["in_channels"])

    def text_width(self, config: Mapping[str, Any]) -> int:
        """Width of the text's embedding."""
        return int(config["text_dim"])

    def blank_inputs(self, config: Mapping[str, Any], view: View, words: int) -> Tensors:
        """The further inputs of `blank`, with a batch of one."""
        del config, view, words
        return {}


@torch.no_grad()
def latents_of(vae: Any, video: torch.Tensor) -> torch.Tensor:
    """Normalised latents float32 [channels, latent frames, height, width] of a video [3, frames, height, width].

    The inverse of what the pipelines of diffusers do before they decode.

    Raises:
        ValueError: the VAE's latents are not finite.
    """
    mean: torch.Tensor = vae.encode(video[None].to(device_of(vae), vae.dtype)).latent_dist.mean[0].float().cpu()
    if not mean.isfinite().all():
        raise ValueError(f"the VAE gives latents that are not finite in {vae.dtype}; load it in float32")
    return normalised(vae, mean)


def normalised(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Latents [channels, frames, height, width] with the mean and the spread that a VAE's settings state."""
    middle, spread = (statistics(vae, name) for name in ("latents_mean", "latents_std"))
    if middle is not None and spread is not None:
        latents = (latents - middle) / spread
    scale = getattr(vae.config, "scaling_factor", None)
    return latents if scale is None else latents * scale


def statistics(vae: Any, name: str) -> torch.Tensor | None:
    """Numbers of each channel [channels, 1, 1, 1], from a VAE's buffers or its settings; None without them."""
    found = dict(vae.named_buffers(recurse=False)).get(name)
    numbers = getattr(vae.config, name, None) if found is None else found.float().cpu()
    return None if numbers is None else torch.as_tensor(numbers, dtype=torch.float32)[:, None, None, None]


def device_of(module: Any) -> torch.device:
    """The device on which a model computes; with offloading it is not that of its weights."""
    device: torch.device = getattr(getattr(module, "_hf_hook", None), "execution_device", None) or module.device
    return device


def first_frame(video: torch.Tensor) -> Any:
    """The first frame of a video [3, frames, height, width] in [-1, 1] as the image that a user would give."""
    from PIL import Image

    pixels = ((video[:, 0].clamp(-1, 1) + 1) * 127.5).round().byte()
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def image_latents(pipe: Any, image: Any, video: torch.Tensor) -> torch.Tensor:
    """Latents float32 [channels, 1, height, width] of an image, as a pipeline prepares it, in the size of a video."""
    return latents_of(pipe.vae, pixels_of(pipe, image, video)[0][:, None])


@torch.no_grad()
def masked_text(pipe: Any, caption: str, words: int | None) -> Tensors:
    """The embedding of a caption and its mask, from pipelines whose `encode_prompt` gives both first."""
    asked = dict(do_classifier_free_guidance=False, max_sequence_length=words)
    text, mask, *_ = pipe.encode_prompt(caption, device=device_of(pipe.text_encoder), **asked)
    return {MAIN: text[0].cpu(), "mask": mask[0].cpu()}


def pixels_of(pipe: Any, image: Any, video: torch.Tensor) -> torch.Tensor:
    """The image [1, 3, height, width] as a pipeline prepares it."""
    height, width = video.shape[2:]
    pixels: torch.Tensor = pipe.video_processor.preprocess(image, height=height, width=width)
    return pixels.float()
