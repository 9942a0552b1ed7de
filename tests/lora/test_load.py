"""What `load_lora` does besides renaming: experts, strength, norms, parts without a place, models that were changed."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_files import Pipe, as_diffusers, as_musubi, as_peft, merged, random_updates
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_lora import add_lora, call, pipeline
from twins import ignores_warnings, twin

from vidsparse import LoraRecipe, load_lora, save_lora, unload_lora
from vidsparse.lora.attach import peft_weights
from vidsparse.lora.fitted import parameters_of
from vidsparse.shapes import model as shapes

pytestmark = ignores_warnings
WIDTH = shapes.build_transformer(num_layers=1).blocks[0].attn1.to_q.in_features


def file_of(pipe: Any, path: Path, seed: int = 0) -> tuple[Path, Any]:
    """A LoRA of a pipeline's transformer, and the transformer with it in its weights."""
    updates = random_updates(pipe.transformer, seed=seed)
    return as_diffusers(path, pipe.transformer, updates), merged(pipe.transformer, updates)


def with_more(path: Path, **more: torch.Tensor) -> Path:
    """The file with more weights, whose names begin with `diffusion_model.` unless they say it themselves."""
    with safe_open(path, "pt") as stored:
        header = stored.metadata()
    save_file(load_file(path) | {begun(name): weight for name, weight in more.items()}, path, header)
    return path


def begun(name: str) -> str:
    return name if name.startswith("transformer.") else f"diffusion_model.{name}"


def bits(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in parameters_of(model).items()}


def assert_bits(model: torch.nn.Module, before: dict[str, torch.Tensor]) -> None:
    after = bits(model)
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


def two_experts() -> Any:
    pipe = pipeline()
    pipe.register_modules(transformer_2=shapes.build_transformer(num_layers=2))
    return pipe


def test_an_expert_is_asked_for_where_the_file_leaves_it_open(tmp_path: Path) -> None:
    pipe = two_experts()
    file, expected = file_of(pipe, tmp_path / "lora.safetensors")
    forms = (
        r"--lora \S+@transformer or --lora \S+@transformer_2, in Python with load_lora\(.*transformer='transformer_2'"
    )
    with pytest.raises(ValueError, match=rf"does not say which of transformer and transformer_2 it is for; .*{forms}"):
        load_lora(pipe, file)
    with pytest.raises(
        ValueError, match="asked for in 'transformer_3', which the pipeline lacks; it has transformer, "
    ):
        load_lora(pipe, file, transformer="transformer_3")
    pipe.transformer_2.load_state_dict(pipe.transformer.state_dict())
    before = call(pipe.transformer)
    assert load_lora(pipe, file, transformer="transformer_2").transformer == "transformer_2"
    torch.testing.assert_close(call(pipe.transformer_2), call(expected))
    assert torch.equal(call(pipe.transformer), before)
    unload_lora(pipe)
    assert torch.equal(call(pipe.transformer_2), before)


def test_a_file_says_its_expert(tmp_path: Path) -> None:
    pipe = two_experts()
    file, _ = file_of(pipe, tmp_path / "lora.safetensors")
    renamed = {name.replace("transformer.", "transformer_2.", 1): weight for name, weight in load_file(file).items()}
    save_file(renamed, tmp_path / "second.safetensors")
    assert load_lora(pipe, tmp_path / "second.safetensors").transformer == "transformer_2"
    save_file(renamed | load_file(file), tmp_path / "both.safetensors")
    with pytest.raises(ValueError, match="is for transformer and transformer_2; write a file for each"):
        load_lora(pipe, tmp_path / "both.safetensors")


def test_strengths_add_up(tmp_path: Path) -> None:
    pipe = pipeline()
    model, updates = pipe.transformer, [random_updates(pipe.transformer, seed=seed) for seed in (0, 1)]
    files = [as_diffusers(tmp_path / f"{i}.safetensors", model, update) for i, update in enumerate(updates)]
    norm = torch.full_like(model.blocks[0].attn1.norm_q.weight, 0.5)
    with_more(files[1], **{"blocks.0.self_attn.norm_q.diff": norm})
    expected = merged(merged(model, updates[0], 0.5), updates[1], -0.25)
    expected.blocks[0].attn1.norm_q.weight.data -= 0.25 * norm
    before, without = bits(model), call(model)
    load_lora(pipe, files[0], strength=0.5)
    load_lora(pipe, files[1], strength=-0.25)
    torch.testing.assert_close(call(model), call(expected), rtol=1e-4, atol=1e-5)
    unload_lora(pipe)
    assert_bits(model, before)
    assert torch.equal(call(model), without)


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_norms_biases_and_whole_weights(tmp_path: Path, strength: float) -> None:
    pipe = pipeline()
    model = pipe.transformer
    file, expected = file_of(pipe, tmp_path / "lora.safetensors")
    expected = merged(model, random_updates(model), strength)
    generator = torch.Generator().manual_seed(3)
    block, theirs = model.blocks[1], expected.blocks[1]
    places = {
        "blocks.1.self_attn.norm_k.diff": (block.attn1.norm_k.weight, theirs.attn1.norm_k.weight),
        "blocks.1.cross_attn.norm_q.w_norm": (block.attn2.norm_q.weight, theirs.attn2.norm_q.weight),
        "blocks.1.norm3.diff": (block.norm2.weight, theirs.norm2.weight),
        "blocks.1.norm3.b_norm": (block.norm2.bias, theirs.norm2.bias),
        "blocks.1.ffn.2.diff_b": (block.ffn.net[2].bias, theirs.ffn.net[2].bias),
        "blocks.1.modulation.diff": (block.scale_shift_table, theirs.scale_shift_table),
        "head.head.diff": (model.proj_out.weight, expected.proj_out.weight),
        "patch_embedding.diff_b": (model.patch_embedding.bias, expected.patch_embedding.bias),
        "time_embedding.0.set_weight": (
            model.condition_embedder.time_embedder.linear_1.weight,
            expected.condition_embedder.time_embedder.linear_1.weight,
        ),
    }
    values = {name: 0.1 * torch.randn(place.shape, generator=generator) for name, (place, _) in places.items()}
    with torch.no_grad():
        for name, (place, wanted) in places.items():
            wanted.copy_(place + strength * (values[name] - (place if "set_weight" in name else 0)))
    before, without = bits(model), call(model)
    load_lora(pipe, with_more(file, **values), strength=strength)
    torch.testing.assert_close(call(model), call(expected), rtol=1e-4, atol=1e-5)
    unload_lora(pipe)
    assert_bits(model, before)
    assert torch.equal(call(model), without)


def test_a_bias_of_peft(tmp_path: Path) -> None:
    pipe = pipeline()
    updates = {"blocks.0.attn1.to_q": random_updates(pipe.transformer)["blocks.0.attn1.to_q"]}
    file, bias = as_diffusers(tmp_path / "lora.safetensors", pipe.transformer, updates), torch.linspace(-1, 1, WIDTH)
    with_more(file, **{"transformer.blocks.0.attn1.to_q.lora_B.bias": bias})
    expected = merged(pipe.transformer, updates)
    expected.blocks[0].attn1.to_q.bias.data += updates["blocks.0.attn1.to_q"].scale * bias
    load_lora(pipe, file)
    torch.testing.assert_close(call(pipe.transformer), call(expected), rtol=1e-4, atol=1e-5)


def test_parts_without_a_place_are_named_and_counted(tmp_path: Path) -> None:
    pipe, notes = pipeline(), list[str]()
    file, expected = file_of(pipe, tmp_path / "lora.safetensors")
    image = {
        f"blocks.{i}.cross_attn.{name}_img.lora_{side}.weight": torch.ones(shape)
        for i in range(2)
        for name in "kv"
        for side, shape in (("down", (2, WIDTH)), ("up", (WIDTH, 2)))
    }
    more = {"blocks.0.cross_attn.norm_k_img.diff": torch.ones(WIDTH), "blocks.0.new.diff": torch.ones(1)}
    channels = {f"patch_embedding.lora_{s}.weight": torch.ones(x) for s, x in (("A", (2, 36)), ("B", (WIDTH, 2)))}
    load_lora(pipe, with_more(file, **image, **more, **channels), note=notes.append)
    torch.testing.assert_close(call(pipe.transformer), call(expected), rtol=1e-4, atol=1e-5)
    (text,) = notes
    assert "\n" not in text and "parts without a place in WanTransformer3DModel are left out: " in text
    assert "6 for images that this model does not take, such as diffusion_model.blocks.0.cross_attn" in text
    assert "1 of unknown name, such as diffusion_model.blocks.0.new" in text
    with pytest.warns(UserWarning, match="parts without a place"):
        load_lora(pipe, file)


def test_incomplete_files_are_refused(tmp_path: Path) -> None:
    pipe = pipeline()
    file, _ = file_of(pipe, tmp_path / "lora.safetensors")
    weights, before = load_file(file), bits(pipe.transformer)
    name = "transformer.blocks.0.attn1.to_q"
    cases = [
        ({f"{name}.lora_B.weight": None}, ValueError, rf"incomplete: {name} lacks the matrix up \(B\); get it again"),
        ({f"{name}.lora_A.weight": None}, ValueError, r"lacks the matrix down \(A\)"),
        ({f"{name}.lora_A.weight": torch.ones(3, WIDTH)}, ValueError, "which do not fit each other"),
        ({f"{name}.lora_A.other.weight": torch.ones(2, WIDTH)}, ValueError, "holds several LoRAs, None, other"),
        ({"lora_unet_blocks_0_self_attn_q.lora_down.weight": torch.ones(2, WIDTH)}, ValueError, "incomplete"),
        ({f"{name}.lokr_w1": torch.ones(2)}, NotImplementedError, "is LoKr, as its .*; vidsparse loads LoRAs alone"),
        ({f"{name}.dora_scale": torch.ones(2)}, NotImplementedError, "is a DoRA in the form of LyCORIS"),
        (
            {"diffusion_model.blocks.0.norm3.diff": torch.ones(3)},
            ValueError,
            r"the weight of blocks\.0\.norm2 by \[3\]",
        ),
    ]
    for changes, error, says in cases:
        changed = {key: value for key, value in (weights | changes).items() if value is not None}
        save_file(changed, tmp_path / "changed.safetensors")
        with pytest.raises(error, match=says):
            load_lora(pipe, tmp_path / "changed.safetensors")
        assert not getattr(pipe.transformer, "peft_config", {})
        assert_bits(pipe.transformer, before)
    twice = weights | {
        f"diffusion_model.blocks.0.self_attn.q.lora_{s}.weight": weights[f"{name}.lora_{s}.weight"] for s in "AB"
    }
    save_file({key: value.clone() for key, value in twice.items()}, tmp_path / "twice.safetensors")
    with pytest.raises(ValueError, match=r"changes blocks\.0\.attn1\.to_q twice, under two names"):
        load_lora(pipe, tmp_path / "twice.safetensors")


@pytest.mark.parametrize("other", [False, True], ids=["alone", "beside another LoRA"])
@pytest.mark.parametrize("fails", ["in the second model", "within a model"])
def test_a_load_that_fails_leaves_nothing(
    other: bool, fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connectors of LTX-2 stand before its transformer, and one file is for both."""
    model, connectors = pipeline().transformer, pipeline().transformer
    pipe, parts = Pipe(model, connectors=connectors), (connectors, model)
    if other:
        for part in parts:
            add_lora(part)
    updates = {layer: u for layer, u in random_updates(pipeline().transformer).items() if layer.startswith("blocks.")}
    weights = {
        f"{part}.{name}": weight.clone()
        for part in ("connectors", "transformer")
        for name, weight in peft_weights(updates).items()
    }
    norm = torch.ones_like(connectors.blocks[0].norm2.weight)
    weights |= {f"{part}.blocks.0.norm2.diff": norm.clone() for part in ("connectors", "transformer")}
    file = tmp_path / "lora.safetensors"
    save_file(weights, file)
    before = [(bits(part), dict(part.named_modules()), call(part), grads(part)) for part in parts]
    scheduler = pipe.scheduler

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("no memory")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="no memory"):
        if fails == "in the second model":
            patch.setattr(model, "load_lora_adapter", refuse)
        else:
            patch.setattr("peft.set_peft_model_state_dict", refuse)
            patch.setattr("diffusers.loaders.peft.set_peft_model_state_dict", refuse, raising=False)
            patch.setattr("peft.utils.set_peft_model_state_dict", refuse)
        load_lora(pipe, file)
    for part, (values, modules, output, learns) in zip(parts, before, strict=True):
        assert_bits(part, values)
        assert list(getattr(part, "peft_config", {})) == (["default"] if other else [])
        after = dict(part.named_modules())
        assert after.keys() == modules.keys() and all(after[name] is modules[name] for name in modules)
        assert torch.equal(call(part), output) and grads(part) == learns
    assert pipe.scheduler is scheduler
    load_lora(pipe, file)
    assert all(not torch.equal(call(part), output) for part, (_, _, output, _) in zip(parts, before, strict=True))
    unload_lora(pipe)
    for part, (values, *_) in zip(parts, before, strict=True):
        assert_bits(part, values)


def grads(model: torch.nn.Module) -> dict[str, bool]:
    return {name: parameter.requires_grad for name, parameter in model.named_parameters()}


def test_settings_of_peft_beside_its_file(tmp_path: Path) -> None:
    pipe, notes = pipeline(), list[str]()
    updates = random_updates(pipe.transformer)
    file = as_peft(tmp_path / "adapter_model.safetensors", pipe.transformer, updates)
    file.with_name("adapter_config.json").unlink()
    load_lora(pipe, file, note=notes.append)
    assert len(notes) == 1 and "no adapter_config.json is beside it: alpha is taken to be the rank" in notes[0]


def test_fused_projections_are_refused(tmp_path: Path) -> None:
    pipe = pipeline()
    file, expected = file_of(pipe, tmp_path / "lora.safetensors")
    pipe.transformer.fuse_qkv_projections()
    with pytest.raises(ValueError, match=r"blocks\.0\.attn1, which are fused; call pipe\.transformer\.unfuse_qkv_proj"):
        load_lora(pipe, file)
    pipe.transformer.unfuse_qkv_projections()
    load_lora(pipe, file)
    torch.testing.assert_close(call(pipe.transformer), call(expected), rtol=1e-4, atol=1e-5)


def test_a_compiled_transformer(tmp_path: Path) -> None:
    pipe = pipeline()
    file, expected = file_of(pipe, tmp_path / "lora.safetensors")
    before = call(pipe.transformer)
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    assert torch.equal(call(pipe.transformer), before)
    load_lora(pipe, file)
    torch.testing.assert_close(call(pipe.transformer), call(expected), rtol=1e-4, atol=1e-5)
    unload_lora(pipe)
    assert torch.equal(call(pipe.transformer), before)


def test_a_transformer_stored_in_float8(tmp_path: Path) -> None:
    pipe = pipeline()
    model = pipe.transformer
    file, expected = file_of(pipe, tmp_path / "lora.safetensors")
    exact = call(expected)
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    before = call(model)
    load_lora(pipe, file)
    layer = model.blocks[0].attn1.to_q
    assert layer.base_layer.weight.dtype == torch.float8_e4m3fn
    assert layer.lora_A["default_0"].weight.dtype == torch.float32
    found = call(model)
    # As far from the exact output as the model in float8 is by itself, and a half more.
    rounding = (before - call(pipeline_in_float32(model))).abs().max()
    assert (found - exact).abs().max() < 1.5 * rounding + 0.1 * (exact - before).abs().max()
    unload_lora(pipe)
    assert torch.equal(call(model), before)


def pipeline_in_float32(model: Any) -> Any:
    """The model that `pipeline` builds, whose weights are random but the same: those before float8."""
    torch.manual_seed(0)
    return shapes.build_transformer(num_layers=2)


def test_a_pipeline_without_loras_of_its_own(tmp_path: Path) -> None:
    """Such as that of HunyuanVideo 1.5, which diffusers gave no `load_lora_weights`."""
    model = twin("HunyuanVideo15Transformer3DModel").build()
    pipe, known = Pipe(model), twin("HunyuanVideo15Transformer3DModel")
    before = known.outputs(model)
    load_lora(pipe, as_diffusers(tmp_path / "lora.safetensors", model, random_updates(model)))
    assert any(not torch.equal(value, before[name]) for name, value in known.outputs(model).items())
    unload_lora(pipe)
    assert all(torch.equal(value, before[name]) for name, value in known.outputs(model).items())


def test_a_loaded_lora_of_stacked_layers_can_be_saved(tmp_path: Path) -> None:
    model = twin("MochiTransformer3DModel").build()
    load_lora(Pipe(model), as_musubi(tmp_path / "lora.safetensors", model, random_updates(model)))
    save_lora(tmp_path / "saved", model, LoraRecipe(), adapter_name="default_0")
    again = twin("MochiTransformer3DModel").build()
    load_lora(Pipe(again), tmp_path / "saved")
    outputs = [twin("MochiTransformer3DModel").outputs(one) for one in (model, again)]
    assert all(torch.equal(outputs[0][name], outputs[1][name]) for name in outputs[0])


def test_the_other_loras_stay_active(tmp_path: Path) -> None:
    pipe = pipeline()
    file, expected = file_of(pipe, tmp_path / "lora.safetensors")
    add_lora(pipe.transformer)
    with_one = call(pipe.transformer)
    add_lora(expected)
    load_lora(pipe, file)
    assert pipe.get_active_adapters() == ["default", "default_0"]
    torch.testing.assert_close(call(pipe.transformer), call(expected), rtol=1e-4, atol=1e-5)
    assert not torch.equal(call(pipe.transformer), with_one)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_lora(pipe, file)
