"""SkyReels-V2 (`SkyReelsV2Transformer3DModel`): text, image and video to video. Every token is video."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from vidsparse.runtime.adapter import Noise
from vidsparse_pipelines.sequence_plan import divided, divided_output, joined_output
from vidsparse_pipelines.wan import WanAdapter

CONDITION = 100  # the most noise, of 1000, of a frame that is given; pipelines warn above 60


class SkyReelsV2Adapter(WanAdapter):
    """Self-attention (`attn1`) of each block: its modules, layout and processor are those of Wan.

    Diffusion forcing gives each frame a timestep; the noisiest counts, where the others are those of given frames. In
    asynchronous diffusion forcing (`ar_step` above 0) frames are at different steps: from the first such call on, their
    mean counts, which falls from call to call until the window moves on to later frames, and begins another video then.
    How many steps there are is unknown. With `causal_block_size` above 1, attention has a mask by blocks of frames, and
    runs dense.
    """

    family = "SkyReels-V2"
    tasks = "text and image to video, diffusion forcing"
    processors = ("SkyReelsV2AttnProcessor",)
    frame_rate = 24
    block_states: Mapping[str, tuple[str, ...]] = {"SkyReelsV2TransformerBlock": ("hidden_states",)}

    def __init__(self) -> None:
        self._staggered, self._mean = False, 0.0  # of the call before

    def timestep(self, transformer: torch.nn.Module, call: Mapping[str, Any]) -> float:
        noise, most = torch.as_tensor(call["timestep"]), super().timestep(transformer, call)
        if noise.ndim != 2:  # also of a scheduler, which is no call
            return most
        mean = float(noise.double().mean())
        differ = bool(((noise > CONDITION) & (noise < most)).any())
        # At the end of a window all frames but one are finished, and finished frames look like given ones.
        self._staggered = differ or (self._staggered and mean <= self._mean)
        self._mean = mean
        return mean if self._staggered else most

    def parallel_plan(self, transformer: torch.nn.Module) -> dict[str, Any]:
        blocks: Any = transformer.blocks
        return {
            "rope": {index: divided_output(1, 4) for index in (0, 1)},
            "blocks.*": {"temb": divided(2, 4)},  # one for each token in diffusion forcing
            "blocks.0": {"hidden_states": divided(1, 3)},
            f"blocks.{len(blocks) - 1}": joined_output(),  # what follows reads the whole timesteps
        }

    def example(
        self, transformer: torch.nn.Module, view: tuple[int, int, int], batch: int, noise: Noise
    ) -> dict[str, Any]:
        call = super().example(transformer, view, batch, noise)
        config: Any = transformer.config
        if config.inject_sample_info:
            call["fps"] = [1] * batch  # a kind: 16 frames a second, or more
        return call
