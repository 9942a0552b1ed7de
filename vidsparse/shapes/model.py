"""The parts of the model `shapes`, built from diffusers' classes, and the weights that ship with the package."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vidsparse.shapes.scene import MAX_WORDS as MAX_WORDS, WORDS
from vidsparse.shapes.shipped import DEFAULT, FOLDER as FOLDER, SAMPLING as SAMPLING

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel
    from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

LATENT_CHANNELS = 8
TEXT_WIDTH = 64


def build_vae(mean: list[float] | None = None, std: list[float] | None = None) -> AutoencoderKLWan:
    """A small Wan VAE: 4x in time, 4x in height and width, 8 latent channels."""
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(
        base_dim=24,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        latents_mean=mean or [0.0] * LATENT_CHANNELS,
        latents_std=std or [1.0] * LATENT_CHANNELS,
        is_residual=True,
        scale_factor_temporal=4,
        scale_factor_spatial=4,
    )


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token for each word of `WORDS`."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "</s>", "<unk>"]
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*special, *WORDS])}, unk_token="<unk>"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=MAX_WORDS
    )


def build_text_encoder() -> UMT5EncoderModel:
    """A two-layer UMT5 encoder, 64 wide."""
    from transformers import UMT5Config, UMT5EncoderModel

    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=3 + len(WORDS),
            d_model=TEXT_WIDTH,
            d_kv=32,
            d_ff=128,
            num_layers=2,
            num_heads=2,
            dropout_rate=0.0,
        )
    )


def build_transformer(patch: int = 1, **changes: Any) -> WanTransformer3DModel:
    """The video transformer: 6 blocks, 3 heads of 64. With `patch=2`, the first expert, tokens cover 2x2 latents."""
    from diffusers import WanTransformer3DModel

    settings: dict[str, Any] = dict(
        patch_size=(1, patch, patch),
        num_attention_heads=3,
        attention_head_dim=64,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        text_dim=TEXT_WIDTH,
        freq_dim=128,
        ffn_dim=768,
        num_layers=6,
    )
    return WanTransformer3DModel(**(settings | changes))


def load_pipeline(dtype: torch.dtype = torch.float32, model: str | Path = DEFAULT) -> WanPipeline:
    """Load a pipeline of `shapes`; no network.

    Args:
        dtype: of the weights.
        model: "shapes", or a folder, such as one that the training exported.

    Raises:
        FileNotFoundError: there is no pipeline.
    """
    from diffusers import WanPipeline

    ships = model == DEFAULT
    folder = FOLDER if ships else Path(model)
    if not (folder / "model_index.json").is_file():
        advice = "reinstall vidsparse" if ships else f"give {DEFAULT} or a folder"
        raise FileNotFoundError(f"no model of shapes at {folder}; {advice}")
    with warnings.catch_warnings():
        # Newer versions of diffusers call the argument `dtype`, and warn about the name that older ones need.
        warnings.simplefilter("ignore", FutureWarning)
        pipe: WanPipeline = WanPipeline.from_pretrained(folder, torch_dtype=dtype, local_files_only=True)
    return pipe
