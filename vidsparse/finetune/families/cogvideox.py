"""CogVideoX 1.0 and 1.5: text and image to video, by v-prediction. Frames come before channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vidsparse.finetune.draws.example import Example
from vidsparse.finetune.families.task import (
    MAIN,
    Tensors,
    TrainingTask,
    View,
    device_of,
    first_frame,
    latents_of,
    pixels_of,
)
from vidsparse.runtime.adapter import TRAIN_TIMESTEPS


@dataclass(frozen=True)
class CogVideoXTask(TrainingTask):
    """Text to video. A level s is the timestep 1000 s of the scheduler, rounded down; the answer is its velocity.

    The error of the velocity is that of the video it implies, weighted by 1 / (1 - alpha), alpha being the scheduler's
    cumulative product: the loss of CogVideoX (Yang et al., arXiv 2408.06072).
    """

    family = "CogVideoX 1.0, 1.5"
    pipelines = ("CogVideoXPipeline",)
    prediction = "v_prediction"

    def video_facts(self) -> tuple[Any, ...]:
        patch = self.config.get("patch_size_t") or 1
        return () if patch == 1 else ("frames in patches of", patch)

    def encode_video(self, pipe: Any, video: torch.Tensor) -> Tensors:
        tensors = super().encode_video(pipe, video)
        return {**tensors, MAIN: self._padded(tensors[MAIN])}

    def _padded(self, latents: torch.Tensor) -> torch.Tensor:
        """With copies of the first frame before it, until 1.5 can cut all frames into patches."""
        more = -latents.shape[1] % (self.config.get("patch_size_t") or 1)
        return torch.cat([latents[:, :1]] * more + [latents], dim=1)

    @torch.no_grad()
    def encode_text(self, pipe: Any, caption: str, words: int | None) -> Tensors:
        asked = dict(do_classifier_free_guidance=False, max_sequence_length=words)
        text = pipe.encode_prompt(caption, device=device_of(pipe.text_encoder), **asked)[0]
        return {MAIN: text[0].cpu()}

    def noisy(self, example: Example) -> torch.Tensor:
        noisy: torch.Tensor = self.scheduler.add_noise(example.latents, example.noise, timestep_of(example.level))
        return noisy

    def arguments(self, noisy: torch.Tensor, example: Example, dtype: torch.dtype) -> dict[str, Any]:
        arguments = {
            **super().arguments(noisy, example, dtype),
            "hidden_states": noisy.transpose(1, 2).to(dtype),
            "timestep": timestep_of(example.level),
            "image_rotary_emb": None,
        }
        if self.config["use_rotary_positional_embeddings"]:
            arguments["image_rotary_emb"] = self._rotary(noisy.shape[2:], noisy.device)
        return arguments

    def predicted(self, answer: torch.Tensor, example: Example) -> torch.Tensor:
        return answer.transpose(1, 2)

    def target(self, example: Example) -> torch.Tensor:
        velocity: torch.Tensor = self.scheduler.get_velocity(example.latents, example.noise, timestep_of(example.level))
        return velocity

    def snr(self, level: torch.Tensor) -> torch.Tensor:
        alpha: torch.Tensor = self.scheduler.alphas_cumprod.to(level.device)[timestep_of(level)]
        return alpha / (1 - alpha)

    def shift(self, scheduler: Any, view: View) -> float:
        if scheduler.config.get("prediction_type") != "v_prediction":
            raise NotImplementedError(
                f"{type(scheduler).__name__} cannot be used for training: it must predict velocities"
            )
        return 1.0  # all timesteps alike

    def _rotary(self, size: Sequence[int], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions of a video of latents, as the pipeline computes them."""
        from diffusers.models.embeddings import get_3d_rotary_pos_embed
        from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid

        known = self.config
        patch, of_frames = known["patch_size"], known.get("patch_size_t")
        frames, grid = size[0], (size[1] // patch, size[2] // patch)
        trained = known["sample_height"] // patch, known["sample_width"] // patch
        kind: dict[str, Any] = {"temporal_size": frames}
        if of_frames is None:
            kind["crops_coords"] = get_resize_crop_region_for_grid(grid, trained[1], trained[0])
        else:
            kind = {"temporal_size": -(-frames // of_frames), "grid_type": "slice", "max_size": trained}
            kind["crops_coords"] = None
        found = get_3d_rotary_pos_embed(known["attention_head_dim"], grid_size=grid, device=device, **kind)
        return found[0], found[1]

    def text_width(self, config: Mapping[str, Any]) -> int:
        return int(config["text_embed_dim"])

    def blank(self, config: Mapping[str, Any], view: View, words: int) -> Example:
        frames = view[0] + -view[0] % (config.get("patch_size_t") or 1)
        return super().blank(config, (frames, *view[1:]), words)


@dataclass(frozen=True)
class CogVideoXImageTask(CogVideoXTask):
    """Image to video: the latents of the image beside those of the first frame, and zeros beside all others."""

    pipelines = ("CogVideoXImageToVideoPipeline",)
    from_image = True

    def condition(self, pipe: Any, video: torch.Tensor) -> Tensors:
        pixels = pixels_of(pipe, first_frame(video), video)
        first = latents_of(pipe.vae, pixels[0][:, None])
        # Some models were trained with the image's latents divided by what those of the video are multiplied by.
        if getattr(pipe.vae.config, "invert_scale_latents", False):
            first = first / pipe.vae.config.scaling_factor**2
        return {"first": first}

    def noisy(self, example: Example) -> torch.Tensor:
        noisy, first = super().noisy(example), example.more["first"]
        beside = torch.cat([first, torch.zeros_like(noisy[:, :, 1:])], dim=2)
        return torch.cat([noisy, beside], dim=1)

    def arguments(self, noisy: torch.Tensor, example: Example, dtype: torch.dtype) -> dict[str, Any]:
        told = self.config.get("ofs_embed_dim") is not None
        ofs = torch.full((1,), 2.0, device=noisy.device, dtype=dtype) if told else None
        return super().arguments(noisy, example, dtype) | {"ofs": ofs}

    def blank_inputs(self, config: Mapping[str, Any], view: View, words: int) -> Tensors:
        return {"first": torch.empty(1, self.latent_channels(config), 1, *view[1:])}


def timestep_of(level: torch.Tensor) -> torch.Tensor:
    """The timestep of the scheduler at a noise level, int64."""
    return (TRAIN_TIMESTEPS * level).long().clamp(0, TRAIN_TIMESTEPS - 1)
