"""HunyuanVideo 1.5 (`HunyuanVideo15Transformer3DModel`): image, glyph and prompt tokens stand after the video."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from vidsparse_pipelines.hunyuan_video import HunyuanVideoAdapter


class HunyuanVideo15Adapter(HunyuanVideoAdapter):
    """Joint attention of the dual-stream blocks; this model has no others.

    The model sorts the tokens of its three encoders so that the real ones come first, all padding last. In text to
    video, the image tokens are padding.
    """

    def extra_tokens(self, transformer: torch.nn.Module, call: Mapping[str, Any]) -> tuple[int, int]:
        encoders = "image_embeds", "encoder_hidden_states_2", "encoder_hidden_states"
        return 0, sum(call[name].shape[1] for name in encoders)

    def real_keys(self, mask: torch.Tensor, batch: int, tokens: int) -> torch.Tensor | None:
        # The mask speaks of the last tokens alone. The model also hides keys from padded queries, which nobody reads.
        if mask.ndim != 2 or mask.shape[0] != batch or mask.shape[1] > tokens:
            return None
        return torch.nn.functional.pad(mask.bool(), (tokens - mask.shape[1], 0), value=True)
