"""A training starts with the output that `load_lora` gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_files import as_diffusers, as_musubi, as_peft, random_updates
from peft import LoraConfig, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from tiny_lora import call, pipeline

from vidsparse import Radial, load_lora
from vidsparse.finetune import Settings
from vidsparse.finetune.start import start_hash, start_weights
from vidsparse.lora.attach import peft_weights
from vidsparse.lora.renamed import LowRank

TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")


def settings(file: Path, **changes: Any) -> Settings:
    return Settings(**({"pattern": Radial(density=0.5), "rank": 2, "targets": TARGETS, "start": str(file)} | changes))


def started(pipe: Any, chosen: Settings) -> torch.Tensor:
    """The output at the first step of a training."""
    model, alpha = pipe.transformer, chosen.rank if chosen.alpha is None else chosen.alpha
    weights = start_weights(pipe.transformer, chosen, str(chosen.start))
    model.add_adapter(LoraConfig(r=chosen.rank, lora_alpha=alpha, target_modules=list(chosen.targets)))
    assert not set_peft_model_state_dict(model, weights).unexpected_keys
    return call(model)


def with_config(file: Path, model: torch.nn.Module, **config: Any) -> Path:
    """A LoRA whose scale its settings say."""
    updates = {layer: LowRank(u.down, u.up) for layer, u in random_updates(model).items()}
    header = {f"transformer.{name}": value for name, value in config.items()}
    weights = {f"transformer.{name}": weight for name, weight in peft_weights(updates).items()}
    save_file(weights, file, {"format": "pt", "lora_adapter_metadata": json.dumps(header)})
    return file


CONFIGS: dict[str, dict[str, Any]] = {
    "alpha": {"r": 2, "lora_alpha": 3},
    "rslora": {"r": 2, "lora_alpha": 3, "use_rslora": True},
    "alpha_pattern": {"r": 2, "lora_alpha": 3, "alpha_pattern": {"attn1.to_q": 8, r"blocks\\.1\\.ffn.*": 1}},
    "unknown to any peft": {"r": 2, "lora_alpha": 3, "from_the_future": None},
}


@pytest.mark.parametrize("more", [{}, {"alpha": 5}, {"rank": 6}], ids=str)
@pytest.mark.parametrize("kind", [*CONFIGS, "diffusers", "musubi", "peft"])
def test_it_begins_where_the_lora_ends(kind: str, more: dict[str, Any], tmp_path: Path) -> None:
    pipe, other = pipeline(), pipeline()
    other.transformer.load_state_dict(pipe.transformer.state_dict())
    model, file = pipe.transformer, tmp_path / "adapter_model.safetensors"
    if kind in CONFIGS:
        with_config(file, model, target_modules=["to_q"], **CONFIGS[kind])
    else:
        write = {"diffusers": as_diffusers, "musubi": as_musubi, "peft": as_peft}[kind]
        write(file, model, random_updates(model, lambda layer: kind != "musubi" or "attn1" in layer))
    before, begins = call(model), started(other, settings(file, **more))
    load_lora(pipe, file)
    expected = call(model)
    assert (expected - before).abs().max() > 0.01
    torch.testing.assert_close(begins, expected, rtol=1e-4, atol=1e-5)


def test_what_is_filled_up_can_learn(tmp_path: Path) -> None:
    pipe = pipeline()
    file = as_diffusers(tmp_path / "lora.safetensors", pipe.transformer, random_updates(pipe.transformer))
    weights = start_weights(pipe.transformer, settings(file, rank=4), str(file))
    assert all(weight[2:].abs().min() > 0 for name, weight in weights.items() if "lora_A" in name)
    assert all(not weight[:, 2:].any() for name, weight in weights.items() if "lora_B" in name)
    rows = [weight[2:] for name, weight in weights.items() if "lora_A" in name]
    assert all(not torch.equal(a, b) for i, a in enumerate(rows) for b in rows[:i]), "layers begin alike"
    again = start_weights(pipe.transformer, settings(file, rank=4), str(file))
    assert all(torch.equal(weight, again[name]) for name, weight in weights.items())


def test_what_a_training_cannot_hold(tmp_path: Path) -> None:
    pipe = pipeline()
    model, file = pipe.transformer, tmp_path / "lora.safetensors"
    as_diffusers(file, model, random_updates(model))
    with pytest.raises(ValueError, match=r"does not fit: its .* is of rank 2, in a training of rank 1 and targets"):
        start_weights(pipe.transformer, settings(file, rank=1), str(file))
    with pytest.raises(ValueError, match=r"its \S+ is no target, in a training of rank 2 and targets to_q; choose"):
        start_weights(pipe.transformer, settings(file, targets=("to_q",)), str(file))
    norm = {"diffusion_model.blocks.0.norm3.diff": torch.ones_like(model.blocks[0].norm2.weight)}
    save_file(load_file(file) | norm, tmp_path / "norm.safetensors")
    with pytest.raises(ValueError, match=r"also changes blocks\.0\.norm2 outside of low-rank matrices"):
        start_weights(pipe.transformer, settings(file), str(tmp_path / "norm.safetensors"))


def test_the_hash_is_also_of_the_settings_beside_the_file(tmp_path: Path) -> None:
    pipe = pipeline()
    file = as_peft(tmp_path / "adapter_model.safetensors", pipe.transformer, random_updates(pipe.transformer))
    before, config = start_hash(str(file)), tmp_path / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 7}))
    assert start_hash(str(file)) != before
