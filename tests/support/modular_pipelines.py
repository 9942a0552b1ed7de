"""The denoising steps of diffusers' modular pipelines, with small random transformers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from twins import class_or_skip

from vidsparse.doctor import Twin

STEPS, TEXT = 4, 9
Parts = dict[str, Any]


@dataclass(frozen=True)
class Modular:
    """A modular pipeline that begins with embeddings and ends with latents.

    Attributes:
        blocks: module and class of its steps. parts: makes its components. arguments: makes those of a call.
        calls: of the transformer in a step. transformers: those that run, in this order.
    """

    blocks: str
    parts: Callable[[], Parts]
    arguments: Callable[[], Parts]
    calls: int = 2
    transformers: tuple[str, ...] = ("transformer",)

    def build(self) -> Any:
        """The pipeline; skips the test where this diffusers lacks it."""
        module, _, cls = self.blocks.partition(":")
        blocks: Any = pytest.importorskip(f"diffusers.modular_pipelines.{module}")
        pipe = getattr(blocks, cls)().init_pipeline()
        pipe.update_components(**self.parts())
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def latents(self, pipe: Any, **changes: Any) -> torch.Tensor:
        """What the pipeline denoises, the same each time."""
        arguments = {"num_inference_steps": STEPS, **self.arguments(), **changes}
        latents: torch.Tensor = pipe(**arguments, generator=torch.Generator().manual_seed(4), output="latents")
        return latents


def noise(*shape: int, seed: int = 5) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def prompts(*shape: int, name: str = "prompt_embeds") -> Parts:
    """Embeddings of a prompt and of a negative one."""
    return {name: noise(*shape), f"negative_{name}": noise(*shape, seed=6)}


def masks(tokens: int, *names: str) -> Parts:
    """Masks of text of which all is real."""
    return {f"{sign}{name}": torch.ones(1, tokens).long() for name in names for sign in ("", "negative_")}


def model(cls: str, **config: Any) -> Any:
    return Twin(class_or_skip(cls), config).build()


def packed(case: str, **config: Any) -> Any:
    from packed_models import CASES  # skips tests where this diffusers lacks these models

    return CASES[case].build(**config)


def flow(**settings: Any) -> Parts:
    return {"scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, **settings)}


def unipc() -> Parts:
    kind = diffusers.UniPCMultistepScheduler
    return {"scheduler": kind(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)}


def wan(cls: str, *names: str, **config: Any) -> Callable[[], Parts]:
    return lambda: unipc() | {name: model(cls, **config) for name in names}


def wan_call(**more: torch.Tensor) -> Parts:
    return prompts(1, 7, 16) | {"height": 64, "width": 96, "num_frames": 17} | more


def hunyuan_call() -> Parts:
    text = prompts(1, 7, 16) | prompts(1, 4, 16, name="prompt_embeds_2")
    text |= masks(7, "prompt_embeds_mask") | masks(4, "prompt_embeds_mask_2")
    return text | {"batch_size": 1, "height": 64, "width": 96, "num_frames": 17}


def ltx_call() -> Parts:
    text = prompts(1, 7, 16) | masks(7, "prompt_attention_mask")
    return text | {"height": 128, "width": 192, "num_frames": 33}


class SoundVae(torch.nn.Module):
    """What the step that prepares sound reads of LTX-2's."""

    config = SimpleNamespace(latent_channels=8, mel_bins=64, sample_rate=16000, mel_hop_length=160)
    mel_compression_ratio = temporal_compression_ratio = 4
    latents_mean, latents_std = torch.zeros(128), torch.ones(128)


def ltx2_parts() -> Parts:
    built = {"transformer": model("LTX2VideoTransformer3DModel"), "audio_vae": SoundVae()}
    return flow(use_dynamic_shifting=True) | built


def ltx2_call() -> Parts:
    text = prompts(1, 7, 16, name="connector_prompt_embeds") | prompts(1, 7, 16, name="connector_audio_prompt_embeds")
    text |= masks(7, "connector_attention_mask")
    return text | {"batch_size": 1, "dtype": torch.float32, "height": 128, "width": 192, "num_frames": 33}


def h3_parts(name: str) -> Callable[[], Parts]:
    def parts() -> Parts:
        kind, built = class_or_skip("MiniMaxH3Scheduler"), packed("h3", in_channels=24, audio_in_channels=32)
        return {name: built, "scheduler": kind(), "audio_scheduler": kind(shift=3.0)}

    return parts


def h3_call(**more: Any) -> Parts:
    text = {"prompt_embeds": torch.ones(1, TEXT, 10), "text_token_tags": torch.ones(TEXT).long()}
    # The last of its steps does nothing.
    return text | {"height": 96, "width": 160, "num_frames": 124, "num_inference_steps": STEPS + 1} | more


def h3_references() -> Parts:
    references = [SimpleNamespace(kind="image", has_audio=False)]
    condition = {"condition_latents": [noise(1, 24, 1, 4, 6)], "audio_condition_latents": []}
    return h3_call(normalized_references=references, **condition)


def cosmos3_call() -> Parts:
    text = {"cond_input_ids": list(range(TEXT)), "uncond_input_ids": [5, 6]}
    return text | {"height": 80, "width": 112, "num_frames": 25}


WAN, VACE = "WanTransformer3DModel", "WanVACETransformer3DModel"
EXPERTS = ("transformer", "transformer_2")
MODULAR = {
    "wan": Modular("wan.modular_blocks_wan:WanCoreDenoiseStep", wan(WAN, "transformer"), wan_call),
    "wan-image": Modular(
        "wan.modular_blocks_wan_i2v:WanImage2VideoCoreDenoiseStep",
        wan(WAN, "transformer", in_channels=36, image_dim=1280),
        lambda: wan_call(image_condition_latents=noise(1, 20, 5, 8, 12), image_embeds=noise(1, 5, 16)),
    ),
    "wan-2.2": Modular(
        "wan.modular_blocks_wan22:Wan22CoreDenoiseStep", wan(WAN, *EXPERTS), wan_call, transformers=EXPERTS
    ),
    "wan-2.2-image": Modular(
        "wan.modular_blocks_wan22_i2v:Wan22Image2VideoCoreDenoiseStep",
        wan(WAN, *EXPERTS, in_channels=36),
        lambda: wan_call(image_condition_latents=noise(1, 20, 5, 8, 12)),
        transformers=EXPERTS,
    ),
    "wan-vace": Modular(
        "wan.modular_blocks_wan_vace:Wan22VaceCoreDenoiseStep",
        wan(VACE, *EXPERTS),
        lambda: wan_call(denoiser_input_fields={"control_hidden_states": noise(1, 96, 5, 8, 12)}),
        transformers=EXPERTS,
    ),
    "hunyuan-1.5": Modular(
        "hunyuan_video1_5.modular_blocks_hunyuan_video1_5:HunyuanVideo15CoreDenoiseStep",
        lambda: flow() | {"transformer": model("HunyuanVideo15Transformer3DModel")},
        hunyuan_call,
    ),
    "ltx": Modular(
        "ltx.modular_blocks_ltx:LTXCoreDenoiseStep",
        lambda: flow(use_dynamic_shifting=True) | {"transformer": model("LTXVideoTransformer3DModel")},
        ltx_call,
    ),
    "ltx2": Modular("ltx2.modular_blocks_ltx2:LTX2CoreDenoiseStep", ltx2_parts, ltx2_call, calls=4),
    "h3": Modular(
        "minimax_h3.modular_blocks_minimax_h3:MiniMaxH3CoreDenoiseStep", h3_parts("transformer"), h3_call, calls=1
    ),
    "h3-references": Modular(
        "minimax_h3.modular_blocks_minimax_h3:MiniMaxH3Ref2VACoreDenoiseStep",
        h3_parts("transformer_ref"),
        h3_references,
        calls=1,
        transformers=("transformer_ref",),
    ),
    "cosmos3": Modular(
        "cosmos.modular_blocks_cosmos3:Cosmos3VisionCoreDenoiseStep",
        lambda: unipc() | {"transformer": packed("cosmos3-omni")},
        cosmos3_call,
    ),
}
