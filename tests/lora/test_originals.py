"""Original names against diffusers' own converters, which this table is independent of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.loaders import lora_conversion_utils as loras, single_file_utils as files
from twins import ignores_warnings

from vidsparse.lora.families import names_of
from vidsparse.lora.names import fill
from vidsparse.lora.originals import ORIGINALS
from vidsparse.lora.renamed import _divided
from vidsparse.lora.stored import PEFT

pytestmark = ignores_warnings
WIDE = 3072  # of HunyuanVideo, which diffusers' converter has as a number


def _ltx_2(checkpoint: dict[str, torch.Tensor], **settings: Any) -> dict[str, torch.Tensor]:
    """The converter of LoRAs, which knows LTX-2.3 too."""
    named = {f"diffusion_model.{name}": weight for name, weight in checkpoint.items()}
    found = loras._convert_non_diffusers_ltx2_lora_to_diffusers(named)
    return {name.removeprefix("transformer."): weight for name, weight in found.items()}


CONVERTERS: dict[str, Callable[..., dict[str, torch.Tensor]]] = {
    "CosmosTransformer3DModel": files.convert_cosmos_transformer_checkpoint_to_diffusers,
    "HunyuanVideoFramepackTransformer3DModel": files.convert_hunyuan_video_transformer_to_diffusers,
    "HunyuanVideoTransformer3DModel": files.convert_hunyuan_video_transformer_to_diffusers,
    "LTX2VideoTransformer3DModel": _ltx_2,
    "LTXVideoTransformer3DModel": files.convert_ltx_transformer_checkpoint_to_diffusers,
    "MiniMaxH3Transformer3DModel": files.convert_minimax_h3_transformer_checkpoint_to_diffusers,
    "MochiTransformer3DModel": files.convert_mochi_transformer_checkpoint_to_diffusers,
    "SkyReelsV2Transformer3DModel": files.convert_wan_transformer_to_diffusers,
    "WanTransformer3DModel": files.convert_wan_transformer_to_diffusers,
    "WanVACETransformer3DModel": files.convert_wan_transformer_to_diffusers,
}
# What only the last block of Mochi has, and a parameter without an ending.
ELSEWHERE = "norm1_context.linear_1", "pos_frequencies"


class Whole(dict[str, torch.Tensor]):
    """A checkpoint that has what its converter takes for granted."""

    def pop(self, key: str, *default: Any) -> Any:
        return super().pop(key, *default) if key in self or default else torch.zeros(6, 1)


def test_every_family_with_original_names_is_checked() -> None:
    assert set(CONVERTERS) | {"LTX2TextConnectors"} == set(ORIGINALS)


@pytest.mark.parametrize("family", CONVERTERS)
def test_a_weight_goes_where_diffusers_puts_it(family: str) -> None:
    names = names_of(family)
    expected: dict[str, torch.Tensor] = {}
    checkpoint = Whole()
    for layer in names.layers:
        original = fill(names.original.name(layer), ["0", "0"])
        rows = 3 * WIDE + 12 if original.endswith("linear1") else 12
        # Each row has a value of its own, and each layer its own values.
        checkpoint.setdefault(f"{original}.weight", (1000 * len(checkpoint) + torch.arange(rows))[:, None])
    for name, weight in checkpoint.items():
        found = names.find(name.removesuffix(".weight"))
        assert found is not None
        expected |= dict(_divided(weight, found, WIDE, None))
    config = {"num_attention_heads": 1, "attention_head_dim": 4}
    converted = CONVERTERS[family](Whole(checkpoint), config=config)
    for layer, weight in expected.items():
        if layer.endswith(ELSEWHERE):
            continue
        theirs = converted[f"{layer}.weight"]
        assert torch.equal(theirs, weight), layer


def test_rows_of_heads() -> None:
    """DiffSynth-Studio keeps query, key and value of each head together."""
    names = names_of("MiniMaxH3Transformer3DModel")
    up = torch.arange(2 * 3 * 128)[:, None].float()  # of two heads
    name = "blocks.0.attn.qkv_proj"
    weights = {f"{name}.lora_A.default.weight": torch.ones(1, 4), f"{name}.lora_B.default.weight": up}
    theirs = loras._convert_non_diffusers_minimax_h3_lora_to_diffusers(dict(weights))
    found = names.find(PEFT + name)
    assert found is not None and found.by_head
    ours = dict(_divided(up, found, 4, 128))
    assert len(ours) == 3
    for layer, rows in ours.items():
        assert torch.equal(theirs[f"transformer.{layer}.lora_B.weight"], rows)
