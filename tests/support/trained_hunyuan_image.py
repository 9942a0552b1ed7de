"""Small random pipelines of HunyuanVideo that start from an image, and FramePack."""

from __future__ import annotations

from functools import partial
from typing import Any

import diffusers
import hunyuan_models
from pipelines_with_inputs import _hunyuan, framepack
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from vidsparse.shapes import model as shapes

IMAGE, END = "<image>", "<|end_header_id|>"
# Of the pipeline, with one word for each part; the image is four tokens.
TEMPLATE = {
    "template": f"a {END} {IMAGE} the {END} {{}} a a {END} a ",
    "crop_start": 5,
    "image_emb_len": 4,
    "image_emb_start": 2,
    "image_emb_end": 6,
}
__all__ = ["TEMPLATE", "framepack", "hunyuan_concatenated", "hunyuan_replaced"]


def _tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = shapes.build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE, END]})
    return tokenizer


def _parts(family: str, **changes: Any) -> dict[str, Any]:
    parts, tokenizer = _hunyuan(), _tokenizer()
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=16
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_attention_heads=2, num_hidden_layers=3
    )
    llava = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        vision_feature_select_strategy="default",
    )
    llava.pad_token_id = tokenizer.pad_token_id
    return parts | {
        "tokenizer": tokenizer,
        "text_encoder": LlavaForConditionalGeneration(llava).eval(),
        "image_processor": CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        "transformer": hunyuan_models.FAMILIES[family].tiny(pooled_projection_dim=16, **changes),
    }


def _short(pipe: Any) -> Any:
    """With a short template, also where `pipe(...)` does not give it."""
    pipe.encode_prompt = partial(pipe.encode_prompt, prompt_template=TEMPLATE)
    return pipe


def hunyuan_concatenated() -> Any:
    """As the first release: the image beside the video, and no guidance as an input."""
    return _short(diffusers.HunyuanVideoImageToVideoPipeline(**_parts("hunyuan-concat", guidance_embeds=False)))


def hunyuan_replaced() -> Any:
    """As the second release: the image in the place of the first frame."""
    return _short(diffusers.HunyuanVideoImageToVideoPipeline(**_parts("hunyuan-replace", guidance_embeds=True)))
