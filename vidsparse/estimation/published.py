"""The published sizes of models: settings, video, steps and text of each, and where the numbers come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class KnownModel:
    """What is published of a model.

    Attributes:
        name: short, for `estimate`; that of its preset where it has one of its own.
        models: Hub ids.
        transformer: class of diffusers. config: what the checkpoint changes of the class's settings; layers, heads,
            head_dim, the width of the feed-forward layers and patches follow from both.
        video: frames, height and width that are published, or the defaults of its pipeline; 0 where nothing says.
        steps: of the denoising.
        text: tokens of the prompt, as its pipeline pads it.
        source: where the settings and the video come from.
        billions: parameters of a transformer, as published; None where nobody says.
        calls: of the transformer in a step: 2 with classifier-free guidance.
        experts: transformers that share the steps.
        vae_stride: frames, and pixels in height and width, of a latent; None: those of the family's first VAE.
    """

    name: str
    models: tuple[str, ...]
    transformer: str
    video: tuple[int, int, int]
    steps: int
    text: int
    source: str
    billions: float | None = None
    calls: int = 2
    experts: int = 1
    vae_stride: tuple[int, int] | None = None
    config: Mapping[str, Any] = field(default_factory=dict, hash=False)


# Settings that several models share.
_COGVIDEOX = {"num_attention_heads": 48, "num_layers": 42, "use_rotary_positional_embeddings": True}
_COGVIDEOX_15 = {
    **_COGVIDEOX,
    "patch_size_t": 2,
    "patch_bias": False,
    "sample_height": 96,
    "sample_width": 170,
    "sample_frames": 81,
}
_COSMOS_25 = {
    "in_channels": 17,
    "num_attention_heads": 16,
    "extra_pos_embed_type": None,
    "rope_scale": (1.0, 3.0, 3.0),
    "use_crossattn_projection": True,
    "crossattn_proj_in_channels": 100352,
}
_IMAGE = {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120}

MODELS = (
    KnownModel(
        "wan2.1-1.3b",
        ("Wan-AI/Wan2.1-T2V-1.3B-Diffusers",),
        "WanTransformer3DModel",
        video=(81, 480, 832),
        steps=50,
        text=512,
        source="Wan, arXiv 2503.20314; the defaults of WanPipeline",
        billions=1.3,
        config={"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
    ),
    KnownModel(
        "wan2.1-14b",
        ("Wan-AI/Wan2.1-T2V-14B-Diffusers",),
        "WanTransformer3DModel",
        video=(81, 720, 1280),
        steps=50,
        text=512,
        source="Wan, arXiv 2503.20314; the defaults of WanTransformer3DModel",
        billions=14,
    ),
    KnownModel(
        "wan2.1-14b-i2v",
        ("Wan-AI/Wan2.1-I2V-14B-720P-Diffusers", "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers"),
        "WanTransformer3DModel",
        video=(81, 720, 1280),
        steps=50,
        text=512,
        source="Wan, arXiv 2503.20314; diffusers' scripts/convert_wan_to_diffusers.py. The 480P model: 832x480",
        billions=16,
        config=_IMAGE,
    ),
    KnownModel(
        "wan2.2-a14b",
        ("Wan-AI/Wan2.2-T2V-A14B-Diffusers",),
        "WanTransformer3DModel",
        video=(81, 720, 1280),
        steps=40,
        text=512,
        source="the Wan 2.2 model card: two experts of 14B; 40 steps",
        billions=14,
        experts=2,
    ),
    KnownModel(
        "wan2.2-a14b-i2v",
        ("Wan-AI/Wan2.2-I2V-A14B-Diffusers",),
        "WanTransformer3DModel",
        video=(81, 720, 1280),
        steps=40,
        text=512,
        source="the Wan 2.2 model card: two experts of 14B; 40 steps",
        billions=14,
        experts=2,
        config={"in_channels": 36},
    ),
    KnownModel(
        "wan2.2-5b",
        ("Wan-AI/Wan2.2-TI2V-5B-Diffusers",),
        "WanTransformer3DModel",
        video=(121, 704, 1280),
        steps=50,
        text=512,
        source="the Wan 2.2 model card: 121 frames of 1280x704; diffusers' scripts/convert_wan_to_diffusers.py",
        billions=5,
        vae_stride=(4, 16),
        config={"num_attention_heads": 24, "ffn_dim": 14336, "num_layers": 30, "in_channels": 48, "out_channels": 48},
    ),
    KnownModel(
        "wanvace",
        ("Wan-AI/Wan2.1-VACE-14B-diffusers",),
        "WanVACETransformer3DModel",
        video=(81, 720, 1280),
        steps=50,
        text=512,
        source="VACE, arXiv 2503.07598; the defaults of WanVACETransformer3DModel",
        billions=17.3,
    ),
    KnownModel(
        "skyreelsv2",
        ("Skywork/SkyReels-V2-T2V-14B-540P-Diffusers",),
        "SkyReelsV2Transformer3DModel",
        video=(97, 544, 960),
        steps=50,
        text=512,
        source="SkyReels-V2, arXiv 2504.13074; diffusers' scripts/convert_skyreelsv2_to_diffusers.py",
        billions=14,
        config={"num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40},
    ),
    KnownModel(
        "hunyuanvideo",
        ("hunyuanvideo-community/HunyuanVideo",),
        "HunyuanVideoTransformer3DModel",
        video=(129, 720, 1280),
        steps=50,
        text=256,
        source="HunyuanVideo, arXiv 2412.03603; the defaults of its class and pipeline. Guidance is an input: one call",
        billions=13,
        calls=1,
    ),
    KnownModel(
        "hunyuanvideo15",
        ("hunyuanvideo-community/HunyuanVideo-1.5-480p_t2v", "hunyuanvideo-community/HunyuanVideo-1.5-720p_t2v"),
        "HunyuanVideo15Transformer3DModel",
        video=(121, 480, 848),
        steps=50,
        text=1985,
        source="the HunyuanVideo 1.5 model card; the defaults of its class. Text: 1,000 tokens, glyphs 256, image 729",
        billions=8.3,
    ),
    KnownModel(
        "framepack",
        ("lllyasviel/FramePackI2V_HY",),
        "HunyuanVideoFramepackTransformer3DModel",
        video=(33, 640, 640),
        steps=50,
        text=256,
        source="FramePack, arXiv 2504.12626; the defaults of its class. One section; its history is not counted",
        billions=13,
        calls=1,
        config={"has_image_proj": True, "has_clean_x_embedder": True, "image_condition_type": "latent_concat"},
    ),
    KnownModel(
        "cogvideox1.5",
        ("zai-org/CogVideoX1.5-5B",),
        "CogVideoXTransformer3DModel",
        video=(81, 768, 1360),
        steps=50,
        text=226,
        source="the CogVideoX1.5 model card; the defaults of CogVideoXPipeline",
        billions=5,
        config=_COGVIDEOX_15,
    ),
    KnownModel(
        "cogvideox1.5-i2v",
        ("zai-org/CogVideoX1.5-5B-I2V",),
        "CogVideoXTransformer3DModel",
        video=(81, 768, 1360),
        steps=50,
        text=226,
        source="the CogVideoX1.5 model card; the defaults of CogVideoXImageToVideoPipeline",
        billions=5,
        config={**_COGVIDEOX_15, "in_channels": 32, "ofs_embed_dim": 512},
    ),
    KnownModel(
        "cogvideox",
        ("zai-org/CogVideoX-5b",),
        "CogVideoXTransformer3DModel",
        video=(49, 480, 720),
        steps=50,
        text=226,
        source="CogVideoX, arXiv 2408.06072; diffusers' scripts/convert_cogvideox_to_diffusers.py",
        billions=5,
        config=_COGVIDEOX,
    ),
    KnownModel(
        "consisid",
        ("BestWishYsh/ConsisID-preview",),
        "ConsisIDTransformer3DModel",
        video=(49, 480, 720),
        steps=50,
        text=226,
        source="ConsisID, arXiv 2411.17440, which starts from CogVideoX-5B-I2V; the defaults of ConsisIDPipeline",
        config={**_COGVIDEOX, "in_channels": 32, "is_train_face": True, "is_kps": True},
    ),
    KnownModel(
        "mochi",
        ("genmo/mochi-1-preview",),
        "MochiTransformer3DModel",
        video=(163, 480, 848),
        steps=64,
        text=256,
        source="the Mochi 1 model card: 163 frames (diffusers: 19); the defaults of MochiTransformer3DModel",
        billions=10,
    ),
    KnownModel(
        "allegro",
        ("rhymes-ai/Allegro",),
        "AllegroTransformer3DModel",
        video=(88, 720, 1280),
        steps=100,
        text=512,
        source="Allegro, arXiv 2410.15458; the defaults of AllegroTransformer3DModel and AllegroPipeline",
        billions=2.8,
    ),
    KnownModel(
        "ltxvideo",
        ("Lightricks/LTX-Video",),
        "LTXVideoTransformer3DModel",
        video=(161, 512, 704),
        steps=50,
        text=128,
        source="LTX-Video, arXiv 2501.00103; the defaults of LTXVideoTransformer3DModel and LTXPipeline",
        billions=1.9,
    ),
    KnownModel(
        "ltx2video",
        ("Lightricks/LTX-2",),
        "LTX2VideoTransformer3DModel",
        video=(121, 512, 768),
        steps=30,
        text=1024,
        source="the LTX-2 model card; the defaults of LTX2VideoTransformer3DModel and LTX2Pipeline",
        billions=19,
    ),
    KnownModel(
        "kandinsky5",
        ("kandinskylab/Kandinsky-5.0-T2V-Lite-sft-5s-Diffusers",),
        "Kandinsky5Transformer3DModel",
        video=(121, 512, 768),
        steps=50,
        text=512,
        source="Kandinsky 5.0, arXiv 2511.14993, and its published settings; the video of Kandinsky5T2VPipeline",
        billions=2,
        config={"in_visual_dim": 16, "out_visual_dim": 16, "visual_cond": True, "model_dim": 1792, "ff_dim": 7168},
    ),
    KnownModel(
        "cosmos1-7b",
        ("nvidia/Cosmos-1.0-Diffusion-7B-Text2World",),
        "CosmosTransformer3DModel",
        video=(121, 704, 1280),
        steps=36,
        text=512,
        source="Cosmos, arXiv 2501.03575; the defaults of CosmosTransformer3DModel and CosmosTextToWorldPipeline",
        billions=7,
    ),
    KnownModel(
        "cosmos2.5-2b",
        ("nvidia/Cosmos-Predict2.5-2B",),
        "CosmosTransformer3DModel",
        video=(93, 704, 1280),
        steps=36,
        text=512,
        source="the Cosmos-Predict2.5 model card; diffusers' scripts/convert_cosmos_to_diffusers.py",
        billions=2,
        vae_stride=(4, 8),
        config=_COSMOS_25,
    ),
    KnownModel(
        "cosmos3",
        ("nvidia/Cosmos3-Nano",),
        "Cosmos3OmniTransformer",
        video=(189, 720, 1280),
        steps=35,
        text=512,
        source="NVIDIA's Cosmos 3 model reference; the defaults of its pipeline. Text: 512 tokens are assumed",
        billions=16,
    ),
    KnownModel(
        "anyflow-far-1.3b",
        ("nvidia/AnyFlow-FAR-Wan2.1-1.3B-Diffusers",),
        "AnyFlowFARTransformer3DModel",
        video=(81, 480, 832),
        steps=50,
        text=512,
        source="Wan, arXiv 2503.20314, whose 1.3B it starts from; the defaults of AnyFlowFARPipeline",
        calls=1,
        config={"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
    ),
    KnownModel(
        "helios",
        ("BestWishYsh/Helios-Base",),
        "HeliosTransformer3DModel",
        video=(33, 384, 640),
        steps=50,
        text=512,
        source="the defaults of HeliosTransformer3DModel and HeliosPipeline, which makes chunks of 33 frames",
        billions=14,
    ),
    KnownModel(
        "minimaxh3",
        ("MiniMaxAI/MiniMax-H3",),
        "MiniMaxH3Transformer3DModel",
        video=(124, 768, 1344),
        steps=50,
        text=512,
        source="the defaults of its class and modular pipeline. Text: 512 tokens are assumed",
        calls=1,
    ),
)
