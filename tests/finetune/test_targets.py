"""Which layers a LoRA changes: what is read here is what peft does."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from tiny_training import PATTERN, pipeline

from vidsparse.finetune.families.hunyuan_video import HunyuanVideoTask
from vidsparse.finetune.families.kandinsky5 import Kandinsky5Task
from vidsparse.finetune.families.ltx import LTXTask
from vidsparse.finetune.families.wan import WanTask
from vidsparse.finetune.low_rank import lora_config
from vidsparse.finetune.settings import Settings

SPARSE = PATTERN


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"targets": ("ffn.net.2", "to_q")},
        {"targets": r"blocks\.1\.attn1\.to_[qkv]"},
        {"targets": "all-linear", "exclude": ("proj_out", "time_proj")},
        {"targets": r".*\.to_q", "exclude": r"blocks\.0\..*"},
        {"exclude": ("attn2.to_q",)},
    ],
    ids=str,
)
def test_peft_takes_the_same_layers(changes: dict[str, object]) -> None:
    settings, transformer = Settings(SPARSE, rank=2, **changes), pipeline().transformer  # type: ignore[arg-type]
    linear = [name for name, module in transformer.named_modules() if isinstance(module, torch.nn.Linear)]
    settings.check_targets(transformer)
    inject_adapter_in_model(lora_config(settings, LoraConfig), transformer)
    changed = {name.split(".lora_A")[0] for name, _ in transformer.named_modules() if ".lora_A." in name}
    assert changed == {name for name in linear if settings.is_target(name)} and changed


def test_targets_of_the_family_are_those_of_none() -> None:
    task = Kandinsky5Task()
    settings = Settings(SPARSE).of_family(task)
    assert settings.targets == task.targets and settings.is_target("visual_transformer_blocks.0.self_attention.to_key")
    assert settings.is_target("visual_transformer_blocks.0.cross_attention.out_layer")
    assert not settings.is_target("visual_transformer_blocks.0.feed_forward.out_layer")
    assert Settings(SPARSE, targets=("to_key",)).of_family(task).targets == ("to_key",)
    assert Settings(SPARSE).layers == WanTask.targets == ("to_q", "to_k", "to_v", "to_out.0")


def test_how_a_family_is_trained() -> None:
    ltx, wan = Settings(SPARSE).of_family(LTXTask()), Settings(SPARSE).of_family(WanTask())
    distilled = Settings(SPARSE).of_family(HunyuanVideoTask({"guidance_embeds": True}))
    assert ltx.timestep_sampling == "logit_normal"
    assert wan.timestep_sampling == distilled.timestep_sampling == "uniform"
    assert (ltx.caption_dropout, wan.caption_dropout, distilled.caption_dropout) == (0.1, 0.1, 0.0)
    for name in ("level_sampling", "share_without_caption"):
        with pytest.raises(RuntimeError, match=r"=None means that of the model's family; call settings.of_family"):
            getattr(Settings(SPARSE), name)
    given = Settings(SPARSE, timestep_sampling="mode", caption_dropout=0.3).of_family(LTXTask())
    assert (given.timestep_sampling, given.caption_dropout) == ("mode", 0.3)


def test_what_would_not_learn_is_refused() -> None:
    transformer = pipeline().transformer
    Settings(SPARSE).check_targets(transformer, r".*ffn.*")
    with pytest.raises(ValueError, match=r"reach \(2, such as blocks\.0\.ffn\.net\.2\).* give exclude='\.\*ffn\.\*'"):
        Settings(SPARSE, targets=("to_q", "ffn.net.2")).check_targets(transformer, r".*ffn.*")
    Settings(SPARSE, targets=("to_q", "ffn.net.2"), exclude=r".*ffn.*").check_targets(transformer, r".*ffn.*")


def test_what_does_not_exist_is_named_with_what_does() -> None:
    class Attention(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.to_q, self.to_out = torch.nn.Linear(2, 2), torch.nn.ModuleList([torch.nn.Linear(2, 2)])

    model = torch.nn.ModuleDict({"attn": Attention()})

    def check(**changes: object) -> None:
        Settings(SPARSE, **changes).check_targets(model)  # type: ignore[arg-type]

    check(targets=("to_q", "to_out.0"))
    with pytest.raises(ValueError, match=r"targets to_z, q do not exist; choose from to_out\.0, to_q"):
        check(targets=("to_z", "to_q", "q"))
    with pytest.raises(ValueError, match=r"targets='\.\*to_z' matches no linear layer; the layers end in to_out"):
        check(targets=".*to_z")
    with pytest.raises(ValueError, match=r"targets='\(' is no regular expression"):
        check(targets="(")
    with pytest.raises(ValueError, match=r"exclude to_z do not exist"):
        check(targets=("to_q",), exclude=("to_z",))
    with pytest.raises(ValueError, match=r"exclude=\('to_q',\) leaves none of the targets"):
        check(targets=("to_q",), exclude=("to_q",))
