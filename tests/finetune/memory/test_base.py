"""A base in fewer bits: what it computes, that a training over it resumes to the bit, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from peft import LoraConfig
from quantised import needs
from tiny_training import PATTERN, assert_same, lines, measured, pipeline, train

from vidsparse import load_lora
from vidsparse.finetune import Settings, check_device, check_pipeline, quantization_of
from vidsparse.finetune.data.fingerprint import fingerprint
from vidsparse.finetune.memory import base
from vidsparse.finetune.memory.base import STORED, cast_layers, whole_blocks

LOW = torch.bfloat16


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    pipeline().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def loaded(folder: Path, kind: str) -> Any:
    if kind == "int8":
        needs("torchao")
    quantization = quantization_of(kind, ["transformer"], torch.float32)
    more = {} if quantization is None else {"quantization_config": quantization}
    return diffusers.WanPipeline.from_pretrained(folder, torch_dtype=torch.float32, **more)


def linear_weights(transformer: Any) -> set[str]:
    """Names of the classes, or of the dtypes of plain weights, of the linear layers in blocks."""
    found = {
        type(part.weight).__name__: part.weight.dtype
        for part in transformer.blocks.modules()
        if isinstance(part, torch.nn.Linear)
    }
    return {str(dtype) if name == "Parameter" else name for name, dtype in found.items()}


@pytest.mark.parametrize("kind", ["int8", "float8"])
def test_a_training_resumes_to_the_bit_and_its_lora_is_of_the_plain_model(
    tmp_path: Path, cache: Path, stored: Path, kind: str
) -> None:
    more: dict[str, Any] = dict(base=kind, gradient_checkpointing=True, validation_share=0.25, sample_every=2)
    pipe = loaded(stored, kind)
    whole = train(tmp_path / "whole", cache, pipe, **more)
    weights = linear_weights(pipe.transformer)
    assert ("Int8Tensor" if kind == "int8" else str(STORED)) in weights
    train(tmp_path / "parts", cache, loaded(stored, kind), steps=2, **more)
    assert_same(train(tmp_path / "parts", cache, loaded(stored, kind), **more), whole)
    found, expected = ([measured(line) for line in lines(tmp_path / name)] for name in ("parts", "whole"))
    assert found == expected and "validation_loss" in str(found)
    assert len(list((tmp_path / "whole/samples").glob("*.mp4"))) == 3
    plain = train(tmp_path / "plain", cache, loaded(stored, "none"), **{**more, "base": "none"})
    assert plain.keys() == whole.keys() and any(not torch.equal(plain[name], whole[name]) for name in plain)
    with pytest.raises(ValueError, match=f"base was 'none', is '{kind}'"):
        train(tmp_path / "plain", cache, loaded(stored, kind), **more)
    # What it adds to plain weights is what it adds to those in fewer bits, up to their rounding.
    inputs = torch.randn(1, 8, 3, 4, 4), torch.tensor([500.0]), torch.randn(1, 5, 64)
    fresh = pipeline()
    with torch.no_grad():
        own = fresh.transformer.eval()(*inputs)[0]
        load_lora(fresh, tmp_path / "whole")
        added, low = (one.transformer.eval()(*inputs)[0] for one in (fresh, pipe))
        assert 0 < (added - low).norm() < (added - own).norm()


def test_the_expert_that_is_not_trained_rests_too_where_it_makes_sample_videos(tmp_path: Path, cache: Path) -> None:
    for samples in (True, False):
        pipe = pipeline()
        pipe.register_modules(transformer_2=pipeline().transformer.eval())
        pipe.register_to_config(boundary_ratio=0.9)
        train(tmp_path / str(samples), cache, pipe, steps=1, base="float8", samples=samples)
        found = {expert: linear_weights(expert) for expert in (pipe.transformer, pipe.transformer_2)}
        assert str(STORED) in found[pipe.transformer]
        assert (found[pipe.transformer] == found[pipe.transformer_2]) == samples
        assert len(list((tmp_path / str(samples)).glob("samples/*.mp4"))) == samples


def test_the_same_weights_are_known_again(stored: Path) -> None:
    one, other = (fingerprint(loaded(stored, "int8").transformer) for _ in range(2))
    assert one == other != fingerprint(loaded(stored, "none").transformer)


def gradients(transformer: Any) -> list[torch.Tensor]:
    torch.manual_seed(1)
    inputs = torch.randn(1, 8, 3, 4, 4), torch.tensor([500.0]), torch.randn(1, 5, 64)
    with whole_blocks("float8"):
        loss = transformer(*inputs)[0].float().square().mean()
        return list(torch.autograd.grad(loss, [w for w in transformer.parameters() if w.requires_grad]))


@pytest.mark.parametrize("checkpointing", [True, False])
def test_gradients_over_float8_are_those_over_the_rounded_weights(checkpointing: bool) -> None:
    low, rounded = (pipeline().transformer for _ in range(2))
    for model in (low, rounded):
        model.requires_grad_(False)
        torch.manual_seed(0)
        targets = ["to_q", "to_v", "ffn.net.2"]
        model.add_adapter(LoraConfig(r=4, target_modules=targets, init_lora_weights=False))
        if checkpointing:
            model.enable_gradient_checkpointing()
        model.train()
    cast_layers(low, torch.float32)
    cast = {name for name, weight in low.named_parameters() if weight.dtype == STORED}
    assert cast and not any("lora" in name or "norm" in name for name in cast)
    with torch.no_grad():
        for name, weight in rounded.named_parameters():
            if name in cast:
                weight.copy_(weight.to(STORED).to(weight.dtype))
    assert all(map(torch.equal, gradients(low), gradients(rounded)))
    assert cast == {name for name, weight in low.named_parameters() if weight.dtype == STORED}, "all are back"


@pytest.mark.filterwarnings("ignore::UserWarning")  # peft: merging needs more
@pytest.mark.parametrize("dora", [False, True])
def test_gradients_over_int8_are_those_over_the_dequantised_weights(stored: Path, dora: bool) -> None:
    low, exact = loaded(stored, "int8").transformer, pipeline().transformer.double()
    with torch.no_grad():
        for name, linear in exact.named_modules():
            if isinstance(linear, torch.nn.Linear) and hasattr(weight := low.get_submodule(name).weight, "dequantize"):
                linear.weight.copy_(weight.dequantize())
    for model in (low, exact):
        model.requires_grad_(False)
        torch.manual_seed(0)
        model.add_adapter(
            LoraConfig(r=4, target_modules=["to_q", "to_v", "ffn.net.2"], init_lora_weights=False, use_dora=dora)
        )
        model.enable_gradient_checkpointing()
        model.train()
    for (name, weight), other in zip(low.named_parameters(), exact.parameters(), strict=True):
        if "lora" in name:
            other.data.copy_(weight)
    torch.manual_seed(1)
    hidden, text = torch.randn(1, 8, 3, 4, 4), torch.randn(1, 5, 64)
    grads = []
    for model, dtype in ((low, torch.float32), (exact, torch.float64)):
        loss = model(hidden.to(dtype), torch.tensor([500.0]), text.to(dtype))[0].double().square().mean()
        grads.append(torch.autograd.grad(loss, [w for w in model.parameters() if w.requires_grad]))
    for found, expected in zip(*grads, strict=True):
        # Time embeddings are float32 in both.
        torch.testing.assert_close(
            found.double(), expected.double(), rtol=1e-3, atol=1e-4 * float(expected.abs().max())
        )


# What is refused


def test_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="base='int4' is unknown; choose one of none, int8, nf4, float8"):
        Settings(PATTERN, base="int4")
    monkeypatch.setattr(base, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="base='int8' needs torchao: pip install torchao"):
        check_device(Settings(PATTERN, base="int8"), cpu=True)
    with pytest.raises(ImportError, match="base='nf4' needs bitsandbytes: pip install bitsandbytes"):
        base.check_base_on("nf4", torch.device("cuda"))
    with pytest.raises(ValueError, match="base='nf4' needs a GPU with CUDA, and this training is on cpu"):
        check_device(Settings(PATTERN, base="nf4"), cpu=True)
    check_device(Settings(PATTERN, base="nf4"), cpu=True, planned=True)
    with pytest.raises(ValueError, match="dora reads the frozen weights directly, and with base='float8'"):
        Settings(PATTERN, base="float8", dora=True)
    with pytest.raises(ValueError, match="offload_base does not move weights of base='nf4'"):
        Settings(PATTERN, base="nf4", offload_base=True)
    with pytest.raises(ValueError, match="without gradient_checkpointing the backward pass keeps all of them"):
        Settings(PATTERN, offload_base=True, gradient_checkpointing=False)


def test_a_pipeline_that_was_loaded_in_another_way(stored: Path) -> None:
    needs("torchao")
    with pytest.raises(
        ValueError, match=r"base='int8' is quantised while a pipeline is loaded, and this one has plain"
    ):
        check_pipeline(pipeline(), Settings(PATTERN, base="int8"))
    with pytest.raises(ValueError, match=r"base='float8' casts plain weights, and these are quantised .*Int8Tensor"):
        check_pipeline(loaded(stored, "int8"), Settings(PATTERN, base="float8"))
    check_pipeline(loaded(stored, "int8"), Settings(PATTERN, base="none"))


def test_what_loads_nf4() -> None:
    needs("bitsandbytes")
    config = quantization_of("nf4", ["transformer", "transformer_2"], LOW).quant_mapping
    assert list(config) == ["transformer", "transformer_2"]
    assert config["transformer"].bnb_4bit_quant_type == "nf4" and config["transformer"].bnb_4bit_compute_dtype == LOW
