"""Which pipelines start from what: their signatures, the tables, and other pipelines on the same parts."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest

import vidsparse_pipelines
from vidsparse.generation import pipeline_inputs as known
from vidsparse.generation.conditions import MORE
from vidsparse.generation.pipeline_inputs import (
    INPUTS,
    SIBLINGS,
    check_last_image,
    makes_whole,
    needed,
    pipeline_for,
    pipelines_of,
    taken,
)

LTX = {name: ["library", "Class"] for name in ("scheduler", "vae", "text_encoder", "tokenizer", "transformer")}
WAN = LTX | {"_class_name": "WanPipeline", "transformer_2": [None, None], "boundary_ratio": None}


def named(name: str) -> Any:
    return getattr(diffusers, name)


@pytest.mark.parametrize(
    ("name", "takes", "needs"),
    [
        ("WanPipeline", {}, ()),
        ("WanImageToVideoPipeline", {"image": "image", "last_image": "last_image"}, ("image",)),
        ("WanVideoToVideoPipeline", {"video": "video"}, ("video",)),
        ("WanVACEPipeline", dict.fromkeys(INPUTS, "video"), ()),
        ("LTXImageToVideoPipeline", {"image": "image"}, ("image",)),
        ("LTXConditionPipeline", dict.fromkeys(INPUTS, "conditions"), ()),
        ("LTX2ConditionPipeline", dict.fromkeys(INPUTS, "conditions"), ()),
        ("LTXI2VLongMultiPromptPipeline", {"image": "cond_image"}, ()),
        ("CogVideoXFunControlPipeline", {"video": "control_video"}, ("video",)),
        ("CosmosVideoToWorldPipeline", {"image": "image", "video": "video"}, ("image", "video")),
        ("Cosmos2_5_PredictBasePipeline", {"image": "image", "video": "video"}, ()),
        ("HunyuanVideoFramepackPipeline", {"image": "image", "last_image": "last_image"}, ("image",)),
        ("HunyuanVideo15ImageToVideoPipeline", {"image": "image"}, ("image",)),
        ("AllegroPipeline", {}, ()),
    ],
)
def test_what_a_pipeline_takes_and_needs(name: str, takes: dict[str, str], needs: tuple[str, ...]) -> None:
    assert taken(named(name)) == takes and needed(named(name)) == needs


def test_every_name_in_the_tables_is_a_pipeline_of_diffusers() -> None:
    tables = [known.NEEDS, known.WHOLE, known.FROM_END, known.KEEPS_ASPECT, known.CONDITIONS, MORE, SIBLINGS]
    names = {name for table in tables for name in table} | {name for row in SIBLINGS.values() for name in row}
    assert len(names) > 15 and not [name for name in names if not hasattr(diffusers, name)]


def test_every_pipeline_with_an_input_for_a_served_transformer_is_known() -> None:
    """What diffusers adds in a later version shows here, and then in the tables if they must say more."""
    found = {cls.__name__ for cls in pipelines_of(*vidsparse_pipelines.ADAPTERS) if taken(cls)}
    assert found >= {"WanVACEPipeline", "LucyEditPipeline", "SkyReelsV2ImageToVideoPipeline", "Kandinsky5I2VPipeline"}
    continued = {cls.__name__ for cls in pipelines_of(*vidsparse_pipelines.ADAPTERS) if "video" in taken(cls)}
    whole = {name for name in continued if makes_whole(named(name))}
    assert whole == {
        *("WanVideoToVideoPipeline", "WanVACEPipeline", "LucyEditPipeline"),
        *("CogVideoXVideoToVideoPipeline", "CogVideoXFunControlPipeline"),
    }


def test_another_pipeline_runs_on_the_same_parts() -> None:
    for given, name in (
        ((), "LTXPipeline"),
        (("image",), "LTXImageToVideoPipeline"),
        (("image", "last_image"), "LTXConditionPipeline"),
        (("video", "last_image"), "LTXConditionPipeline"),
    ):
        assert pipeline_for(named("LTXPipeline"), LTX, given) is named(name)
    assert pipeline_for(named("WanPipeline"), WAN, ["video"]) is named("WanVideoToVideoPipeline")
    both = WAN | {"expand_timesteps": True}
    assert pipeline_for(named("WanPipeline"), both, ["image"]) is named("WanImageToVideoPipeline")


@pytest.mark.parametrize(
    ("name", "parts", "given", "says"),
    [
        ("WanPipeline", WAN, ["image"], "WanPipeline takes no --image; give --model a checkpoint of WanImageToVideo"),
        ("WanPipeline", WAN | {"transformer_2": ["diffusers", "X"]}, ["video"], "WanPipeline takes no --video"),
        ("WanPipeline", WAN | {"expand_timesteps": True}, ["video"], "WanPipeline takes no --video"),
        ("LTXPipeline", {}, ["image"], "LTXPipeline takes no --image; .* of LTXConditionPipeline or LTXI2VLong"),
        ("AllegroPipeline", LTX, ["image", "last_image"], "takes no --image and --last-image; leave it out"),
        ("CosmosVideoToWorldPipeline", LTX, ["image", "video"], "--image and --video both say how the video starts"),
        ("WanVACEPipeline", LTX, ["last_image", "video"], "takes no --last-image and --video; leave it out"),
        ("WanImageToVideoPipeline", LTX, ["video"], "LucyEditPipeline or WanVideoToVideoPipeline, or leave it out"),
    ],
)
def test_what_no_pipeline_takes_is_refused(name: str, parts: dict[str, Any], given: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        pipeline_for(named(name), parts, given)


def test_a_last_image_is_for_checkpoints_that_were_made_for_it() -> None:
    cls = named("WanImageToVideoPipeline")
    check_last_image(cls, {}, {"image_dim": 1280, "pos_embed_seq_len": 514})
    check_last_image(cls, {}, {"image_dim": None})
    check_last_image(named("WanVACEPipeline"), {}, {"image_dim": 1280})
    for parts, transformer in (({}, {"image_dim": 1280}), ({"expand_timesteps": True}, {})):
        with pytest.raises(ValueError, match="takes no --last-image; give --model one for first and last frames"):
            check_last_image(cls, parts, transformer)
