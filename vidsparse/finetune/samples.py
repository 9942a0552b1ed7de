"""Sample videos of a model in training."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from vidsparse.atomic import replacing
from vidsparse.generation.scheduler import seed_steps


class Prompt(NamedTuple):
    """What a sample video is made from.

    Attributes:
        text: of the prompt.
        embeds, negative_embeds: [1, words, width], with and without text; None: the pipeline embeds the text itself.
        image: that the video starts from, or None.
    """

    text: str
    embeds: torch.Tensor | None = None
    negative_embeds: torch.Tensor | None = None
    image: Any = None


@dataclass(frozen=True)
class Samples:
    """The sample videos of a training.

    Attributes:
        prompts: of the videos.
        folder: that receives them.
        sampling: arguments of `pipe(...)`; the denoising steps are given with each call.
        fps: frames per second.
        seed: of the first prompt; each further one has the next.
    """

    prompts: tuple[Prompt, ...]
    folder: Path
    sampling: Mapping[str, Any]
    fps: float
    seed: int

    def are_missing(self, step: int) -> bool:
        """Whether a video of a step is not there."""
        return any(not path_of(self.folder, step, number).is_file() for number in range(len(self.prompts)))

    def write(
        self,
        pipe: Any,
        step: int,
        steps: int,
        device: torch.device,
        say: Callable[[str], None],
        stay: Collection[Any] = (),
        keep: bool = True,
        shared: bool = False,
    ) -> None:
        """Write one video for each prompt, or say that there is no memory for it: the training matters more.

        Where processes compute a video together (`shared`), it is an error: the others would wait for this one.

        Args: see `write_samples`, and `say` for a message.
        """
        sampling = {**self.sampling, "num_inference_steps": steps}
        try:
            write_samples(pipe, self.prompts, self.folder, step, sampling, self.fps, self.seed, device, stay, keep)
        except torch.OutOfMemoryError:
            if shared:
                raise
            say(f"no sample videos at step {step}: out of memory; --no-samples leaves them out")


@torch.no_grad()
def read_prompts(pipe: Any, texts: tuple[str, ...], words: int | None) -> tuple[Prompt, ...]:
    """Embed prompts on the text encoder's device, padded to `words` like the captions of the training."""
    asked = dict(device=pipe.text_encoder.device, max_sequence_length=words)
    return tuple(Prompt(text, *pipe.encode_prompt(text, **asked)) for text in texts)


@torch.no_grad()
def write_samples(
    pipe: Any,
    prompts: tuple[Prompt, ...],
    folder: Path,
    step: int,
    sampling: Mapping[str, Any],
    fps: float,
    seed: int,
    device: torch.device,
    stay: Collection[Any] = (),
    keep: bool = True,
) -> list[Path]:
    """Write one mp4 for each prompt with the current weights.

    The VAE and all transformers compute on `device`, and move back to their devices afterwards; so do all other parts
    of the pipeline where a prompt has no embeddings. Models in `stay` are not moved. Without `keep` nothing
    is written: other processes need this one to compute.
    """
    from diffusers.utils.export_utils import export_to_video

    folder.mkdir(parents=True, exist_ok=True)
    embedded = all(prompt.embeds is not None for prompt in prompts)
    parts = (pipe.vae, pipe.transformer, getattr(pipe, "transformer_2", None))
    parts = parts if embedded else tuple(pipe.components.values())
    models = [model for model in parts if isinstance(model, torch.nn.Module)]
    before: list[tuple[torch.nn.Module, Any, bool]] = [(model, model.device, model.training) for model in models]
    text_encoder, entry, written = pipe.text_encoder, pipe.config["text_encoder"], []
    # Without its text encoder, which is no longer needed, the pipeline has all its models on one device.
    if embedded:
        pipe.text_encoder = None
    try:
        for model in models:
            (model if _is_in(model, stay) else model.to(device)).eval()
        for number, prompt in enumerate(prompts):
            generator = torch.Generator().manual_seed(seed + number)
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                seed_steps(seed + number)
                frames = pipe(
                    **_arguments(pipe, prompt, sampling, device), generator=generator, output_type="np"
                ).frames[0]
            if not keep:
                continue
            path = path_of(folder, step, number)
            with replacing(path) as temporary:
                # ffmpeg takes fractions of frames too.
                export_to_video(list(frames), str(temporary), fps=fps)  # type: ignore[arg-type]
            written.append(path)
    finally:
        if embedded:
            pipe.text_encoder = text_encoder
            pipe.register_to_config(text_encoder=entry)  # without this the pipeline could not be saved
        for model, home, training in before:
            (model if _is_in(model, stay) else model.to(home)).train(training)
    return written


def path_of(folder: Path, step: int, number: int) -> Path:
    """Where the video of a prompt is, of so many steps."""
    return folder / f"step-{step:07d}-{number}.mp4"


def _is_in(model: Any, models: Collection[Any]) -> bool:
    return any(model is other for other in models)


def _arguments(pipe: Any, prompt: Prompt, sampling: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """The arguments of `pipe(...)` for a prompt."""
    if prompt.embeds is not None and prompt.negative_embeds is not None:
        embeds = prompt.embeds.to(device), prompt.negative_embeds.to(device)
        return {**sampling, "prompt_embeds": embeds[0], "negative_prompt_embeds": embeds[1]}
    # Some pipelines take their size from the image.
    taken = inspect.signature(type(pipe).__call__).parameters
    image = {} if prompt.image is None else {"image": prompt.image}
    return {name: value for name, value in sampling.items() if name in taken} | {"prompt": prompt.text} | image
