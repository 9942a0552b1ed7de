"""LoRAs: what diffusers alone reads of their files, what vidsparse restores, and where they are found."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanPipeline
from huggingface_hub.errors import EntryNotFoundError
from needs import needs_weights
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_lora import RECIPE, TARGETS, add_lora, call, pipeline, saved_lora, trained_pipeline

from vidsparse import (
    LoraRecipe,
    extend_positions,
    load_lora,
    preset,
    save_lora,
    sparsify,
    unload_lora,
)
from vidsparse.finetune.data.encoders import Encoders
from vidsparse.finetune.families.task import MAIN
from vidsparse.finetune.objective import Example, flow_loss
from vidsparse.lora.files import read_recipe
from vidsparse.lora.source import FILE, KNOWN, find_lora
from vidsparse.shapes import model as shapes
from vidsparse.shapes.render import render, training_example
from vidsparse.shapes.shipped import LONGER_FRAMES
from vidsparse.shapes.world import ENDLESS

HERE = version("vidsparse")
trained = pytest.fixture(scope="module")(trained_pipeline)
folder = pytest.fixture(saved_lora)


def untrained(trained: Any) -> Any:
    """The pipeline before its LoRA."""
    pipe = pipeline()
    layers = {name.replace(".base_layer", ""): w for name, w in trained.transformer.state_dict().items()}
    pipe.transformer.load_state_dict({name: w for name, w in layers.items() if "lora" not in name})
    return pipe


def test_the_recipe_and_the_weights_come_back(trained: Any, folder: Path) -> None:
    pipe = untrained(trained)
    without = call(pipe.transformer)
    assert load_lora(pipe, folder) == replace(RECIPE, version=HERE) == read_recipe(folder)
    extend_positions(pipe.transformer, 9, 9)  # those of `trained`
    expected = call(trained.transformer)
    assert (expected - without).abs().max() > 1e-3, "the LoRA changes nothing, so this test shows nothing"
    torch.testing.assert_close(call(pipe.transformer), expected)
    pipe.unload_lora_weights()
    torch.testing.assert_close(call(pipe.transformer), without)


def test_a_transformer_alone_can_be_saved(trained: Any, folder: Path, tmp_path: Path) -> None:
    file = save_lora(tmp_path / "alone", trained.transformer, RECIPE)
    assert file == tmp_path / "alone" / FILE and read_recipe(file) == read_recipe(folder)
    found, expected = load_file(file), load_file(folder / FILE)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_the_file_is_that_of_diffusers_with_one_more_key(trained: Any, folder: Path, tmp_path: Path) -> None:
    from diffusers.training_utils import _collate_lora_metadata
    from peft import get_peft_model_state_dict

    layers = get_peft_model_state_dict(trained.transformer)
    WanPipeline.save_lora_weights(
        tmp_path / "theirs", layers, **_collate_lora_metadata({"transformer": trained.transformer})
    )
    ours, theirs = load_file(folder / FILE), load_file(tmp_path / "theirs" / FILE)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    with safe_open(folder / FILE, "pt") as file, safe_open(tmp_path / "theirs" / FILE, "pt") as other:
        found, expected = file.metadata(), other.metadata()
    recipe = json.loads(found.pop("vidsparse"))
    assert recipe["frames"] == 129 and recipe["pattern"]["pattern"]["density"] == 0.2 and recipe["version"] == HERE
    key = "lora_adapter_metadata"
    # Sets are lists in any order.
    config, wanted = (
        {name: sorted(v) if isinstance(v, list) else v for name, v in json.loads(data.pop(key)).items()}
        for data in (found, expected)
    )
    assert config.items() < wanted.items() and config["transformer.lora_alpha"] == 6 and found == expected


# Fields of LoraConfig in peft 0.17, the oldest that diffusers allows.
KNOWN_TO_PEFT_0_17 = {
    *("r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out", "bias", "use_rslora"),
    *("modules_to_save", "init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern"),
    *("megatron_config", "megatron_core", "trainable_token_indices", "loftq_config", "eva_config", "corda_config"),
    *("use_dora", "use_qalora", "qalora_group_size", "layer_replication", "runtime_config", "lora_bias"),
    *("target_parameters", "task_type", "peft_type", "auto_mapping", "base_model_name_or_path", "revision"),
    "inference_mode",
}


@pytest.mark.parametrize("ships", [True, False], ids=["shapes-long", "saved"])
def test_the_oldest_peft_knows_the_settings(folder: Path, ships: bool) -> None:
    """diffusers gives each of them to LoraConfig, which refuses what it does not know."""
    if ships and not KNOWN["shapes-long"].is_dir():
        pytest.skip("the weights that ship are missing")
    with safe_open(find_lora("shapes-long" if ships else folder), "pt") as file:
        config = json.loads(file.metadata()["lora_adapter_metadata"])
    fields = {name.removeprefix("transformer.") for name in config}
    assert {"r", "lora_alpha", "target_modules"} <= fields <= KNOWN_TO_PEFT_0_17


def test_a_setting_that_differs_is_kept(tmp_path: Path) -> None:
    transformer = shapes.build_transformer(num_layers=1)
    transformer.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=["to_q"], use_rslora=True))
    with safe_open(save_lora(tmp_path, transformer, LoraRecipe()), "pt") as file:
        config = json.loads(file.metadata()["lora_adapter_metadata"])
    assert config["transformer.use_rslora"] is True and len(config) == 4


@needs_weights
def test_diffusers_alone_loads_it_in_a_fresh_process(tmp_path: Path) -> None:
    pipe = shapes.load_pipeline()
    without = call(pipe.transformer)
    add_lora(pipe.transformer)
    save_lora(tmp_path, pipe, replace(RECIPE, positions="plain"))
    torch.save(call(pipe.transformer), tmp_path / "expected.pt")
    code = f"""
        import sys
        import torch
        from diffusers import WanPipeline

        pipe = WanPipeline.from_pretrained({str(shapes.FOLDER)!r}, local_files_only=True)
        pipe.load_lora_weights({str(tmp_path)!r})
        generator = torch.Generator().manual_seed(1)
        hidden, text = torch.randn(1, 8, 3, 4, 4, generator=generator), torch.randn(1, 5, 64, generator=generator)
        with torch.no_grad():
            found = pipe.transformer(hidden, torch.tensor([500.0]), text, return_dict=False)[0]
        torch.testing.assert_close(found, torch.load({str(tmp_path / "expected.pt")!r}))
        assert not any(name.startswith("vidsparse") for name in sys.modules)
    """
    run_alone(code)
    assert (torch.load(tmp_path / "expected.pt") - without).abs().max() > 1e-3


def run_alone(code: str, returncode: int = 0) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, cwd="/", timeout=120
    )
    assert done.returncode == returncode, done.stderr


@pytest.mark.parametrize("named", [True, False], ids=["usual", "stride under another name"])
def test_positions_are_those_of_the_training(trained: Any, folder: Path, named: bool) -> None:
    pipe = untrained(trained)
    if not named:
        del pipe.vae_scale_factor_temporal
    load_lora(pipe, folder)
    expected = pipeline()
    extend_positions(expected.transformer, frames=33, trained_frames=9, kind="riflex")
    assert torch.equal(pipe.transformer.rope.freqs_cos, expected.transformer.rope.freqs_cos)
    assert not torch.equal(pipe.transformer.rope.freqs_cos, trained.transformer.rope.freqs_cos)


def test_both_experts_get_the_positions_of_a_longer_video(trained: Any, tmp_path: Path) -> None:
    pipe = untrained(trained)
    pipe.register_modules(transformer_2=shapes.build_transformer(num_layers=2))
    experts = {"transformer": pipe.transformer, "transformer_2": pipe.transformer_2}
    tables = {kind: _cosines(kind) for kind in ("plain", "riflex", "yarn")}
    folders = {
        kind: save_lora(tmp_path / kind, trained, replace(RECIPE, positions=kind))
        for kind in ("plain", "riflex", "yarn")
    }

    def load(kind: str, transformer: str) -> list[str]:
        load_lora(pipe, folders[kind], transformer=transformer, note=lambda text: None)
        return [next(k for k, x in tables.items() if torch.equal(x, e.rope.freqs_cos)) for e in experts.values()]

    assert load("riflex", "transformer") == ["riflex", "riflex"]
    assert load("yarn", "transformer_2") == ["riflex", "yarn"], "the first expert has a LoRA that decided"
    assert load("plain", "transformer") == ["plain", "yarn"]
    unload_lora(pipe)
    assert all(torch.equal(tables["plain"], expert.rope.freqs_cos) for expert in experts.values())
    assert load("plain", "transformer") == ["plain", "plain"]
    assert load("yarn", "transformer") == ["yarn", "yarn"]


def _cosines(kind: str) -> torch.Tensor:
    transformer = pipeline().transformer
    extend_positions(transformer, frames=33, trained_frames=9, kind=kind)
    cosines: torch.Tensor = transformer.rope.freqs_cos
    return cosines


def test_unloaded_the_pipeline_is_as_before(trained: Any, tmp_path: Path) -> None:
    pipe = untrained(trained)
    folder = save_lora(tmp_path, trained, replace(RECIPE, sampler="sde", flow_shift=5.0))
    scheduler, before, cosines = pipe.scheduler, call(pipe.transformer), pipe.transformer.rope.freqs_cos
    for name in ("one", "two"):
        load_lora(pipe, folder, name)
    assert pipe.scheduler is not scheduler and not torch.equal(pipe.transformer.rope.freqs_cos, cosines)
    for _ in range(2):  # the second time there is nothing to remove
        unload_lora(pipe)
        assert pipe.scheduler is scheduler and torch.equal(pipe.transformer.rope.freqs_cos, cosines)
        assert torch.equal(call(pipe.transformer), before)


def test_unloading_leaves_a_later_scheduler(trained: Any, tmp_path: Path) -> None:
    pipe = untrained(trained)
    folder = save_lora(tmp_path, trained, replace(RECIPE, sampler="sde", flow_shift=5.0))
    load_lora(pipe, folder)
    chosen = pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    unload_lora(pipe)
    assert pipe.scheduler is chosen
    with pytest.raises(TypeError, match="object loads no LoRA"):
        unload_lora(object())


def test_two_loras_under_names(trained: Any, folder: Path, tmp_path: Path) -> None:
    pipe = untrained(trained)
    load_lora(pipe, folder, adapter_name="long")
    add_lora(pipe.transformer, "other", seed=1)
    save_lora(tmp_path / "other", pipe, LoraRecipe(), adapter_name="other")
    found = load_file(tmp_path / "other" / FILE)
    assert not any(torch.equal(weight, found[name]) for name, weight in load_file(folder / FILE).items())
    assert load_lora(pipe, tmp_path / "other", adapter_name="third") == LoraRecipe(version=HERE)
    assert set(pipe.transformer.peft_config) == {"long", "other", "third"}


def test_the_second_expert_has_its_own(trained: Any, tmp_path: Path) -> None:
    pipe = pipeline()
    pipe.register_modules(transformer_2=shapes.build_transformer(num_layers=2))
    add_lora(pipe.transformer_2)
    recipe = LoraRecipe(transformer="transformer_2", version=HERE)
    save_lora(tmp_path, pipe, recipe)
    expected = call(pipe.transformer_2)
    pipe.transformer_2.delete_adapters("default")
    assert load_lora(pipe, tmp_path) == recipe
    torch.testing.assert_close(call(pipe.transformer_2), expected)
    assert not getattr(pipe.transformer, "peft_config", {})
    with pytest.raises(TypeError, match="for 'transformer_2', but WanPipeline has no such part"):
        load_lora(pipeline(), tmp_path)


def test_a_file_without_a_recipe_loads(trained: Any, folder: Path, tmp_path: Path) -> None:
    save_file(load_file(folder / FILE), tmp_path / "other.safetensors")
    pipe = untrained(trained)
    before = pipe.transformer.rope.freqs_cos
    assert load_lora(pipe, tmp_path / "other.safetensors") == LoraRecipe()
    assert pipe.transformer.rope.freqs_cos is before
    assert "does not say" in LoraRecipe().summary


def test_killed_while_it_saves(trained: Any, folder: Path) -> None:
    before = (folder / FILE).read_bytes()
    code = f"""
        import os, pathlib, signal, torch
        import vidsparse
        from peft import LoraConfig
        from vidsparse.shapes.model import build_transformer

        def half(path, data):
            with path.open("wb") as file:
                file.write(data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)

        transformer = build_transformer(num_layers=2)
        transformer.add_adapter(LoraConfig(r=2, target_modules={TARGETS}))
        pathlib.Path.write_bytes = half
        vidsparse.save_lora({str(folder)!r}, transformer, vidsparse.LoraRecipe())
    """
    run_alone(code, returncode=-signal.SIGKILL)
    assert (folder / FILE).read_bytes() == before and len(os.listdir(folder)) == 2
    assert load_lora(untrained(trained), folder) == replace(RECIPE, version=HERE), "what is left over is not in the way"
    save_lora(folder, trained, RECIPE)
    assert os.listdir(folder) == [FILE]


def test_a_full_disk_leaves_the_earlier_file(trained: Any, folder: Path, full_disk: Any) -> None:
    before = (folder / FILE).read_bytes()
    with (
        full_disk(),
        pytest.raises(OSError, match=r"cannot write the LoRA .*: File too large; an earlier one is whole"),
    ):
        save_lora(folder, trained, RECIPE)
    assert os.listdir(folder) == [FILE] and (folder / FILE).read_bytes() == before


@needs_weights
def test_the_lora_that_ships() -> None:
    """It says how it was trained; clips, and the LoRA once more, make noise easier to tell from a drawn video."""
    recipe = read_recipe("shapes-long")
    assert (recipe.base, recipe.transformer, recipe.frames) == ("shapes", "transformer", LONGER_FRAMES)
    assert (recipe.trained_frames, recipe.positions) == (33, "plain")
    assert (recipe.inference_steps, recipe.sampler, recipe.flow_shift) == (20, None, None)
    pipe = shapes.load_pipeline()
    assert recipe.pattern == preset("shapes").pattern
    scene, paths = training_example(random.Random("not in the training"), 65, world=ENDLESS)
    video = render(scene, paths, 65, world=ENDLESS)
    with torch.no_grad():
        latents = Encoders(pipe).encode_video(video)[MAIN][None]
        text = Encoders(pipe).encode_text(scene.caption)[MAIN][None]
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
        example = Example(latents, noise, text, torch.tensor([0.93]))
        losses = [float(flow_loss(pipe.transformer, example))]
        with sparsify(pipe.transformer, recipe.pattern):
            losses.append(float(flow_loss(pipe.transformer, example)))
            load_lora(pipe, "shapes-long")
            losses.append(float(flow_loss(pipe.transformer, example)))
    assert losses[2] < 0.98 * losses[1] and losses[1] < 0.9 * losses[0], losses


def test_known_names_and_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KNOWN, "shapes-long", folder)
    (folder / "other.safetensors").write_text("")
    assert find_lora("shapes-long") == find_lora(str(folder)) == find_lora(folder / FILE) == folder / FILE


def test_a_lora_on_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(repository: str, name: str) -> str:
        asked.append((repository, name))
        if name == FILE and repository == "some-one/long.er":
            raise Missing(f"{name} is not there")
        return str(folder / FILE)

    class Missing(EntryNotFoundError, OSError):
        """As the Hub says it; its own class wants the whole response."""

    monkeypatch.setattr("huggingface_hub.list_repo_files", lambda repository: ["README.md", "b.safetensors"])
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert read_recipe("some-one/long.er").frames == read_recipe("some-one/long.er/lora/c.safetensors").frames == 129
    assert read_recipe("some-one/usual").frames == 129
    files = [("long.er", FILE), ("long.er", "b.safetensors"), ("long.er", "lora/c.safetensors"), ("usual", FILE)]
    assert asked == [(f"some-one/{name}", file) for name, file in files]


def test_the_summary_says_what_is_known() -> None:
    assert RECIPE.summary == (
        "trained on 129 frames (the model on 33), with StepSchedule(pattern=Radial(density=0.2, tile=(1, 8, 8)), "
        "dense_steps=1, dense_layers=(0,)), and PooledComplement(), riflex positions"
    )
    assert LoraRecipe(frames=65, version="9.0").summary == "trained on 65 frames"
