"""The doctor: every family passes every check, and an adapter that is broken fails the right ones."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from test_register_adapter import WIDTH, Foreign, ForeignAdapter

import vidsparse_pipelines
from vidsparse import Radial, VideoGrid
from vidsparse.cli import app
from vidsparse.doctor import CHECKS, Result, Twin, diagnose, examine, masked
from vidsparse.doctor.models import transformers_of
from vidsparse.doctor.support import around, support_table
from vidsparse.doctor.twin import defaults
from vidsparse.run import Run
from vidsparse_pipelines import ADAPTERS
from vidsparse_pipelines.base import WrappedProcessor
from vidsparse_pipelines.cogvideox import CogVideoXAdapter
from vidsparse_pipelines.hunyuan_video import HunyuanVideoAdapter
from vidsparse_pipelines.wan import WanAdapter

ROOT = Path(__file__).parents[1]
# Models warn of what they do on a CPU, and torch says that it is torch which warns, or the line that called it.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
# What checkpoints of a class have besides the defaults.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "wan image": ("WanTransformer3DModel", {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120}),
    "wan first and last frame": (
        "WanTransformer3DModel",
        {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120, "pos_embed_seq_len": 514},
    ),
    "wan 5B": ("WanTransformer3DModel", {"in_channels": 48, "out_channels": 48, "patch_size": [1, 2, 2]}),
    "skyreels diffusion forcing": ("SkyReelsV2Transformer3DModel", {"inject_sample_info": True}),
    "cogvideox 5B": ("CogVideoXTransformer3DModel", {"use_rotary_positional_embeddings": True}),
    "cogvideox 5B image": (
        "CogVideoXTransformer3DModel",
        {"in_channels": 32, "use_rotary_positional_embeddings": True, "use_learned_positional_embeddings": True},
    ),
    "cogvideox 1.5 image": (
        "CogVideoXTransformer3DModel",
        {
            "in_channels": 32,
            "ofs_embed_dim": 512,
            "patch_bias": False,
            "patch_size_t": 2,
            "use_rotary_positional_embeddings": True,
        },
    ),
    "consisid": (
        "ConsisIDTransformer3DModel",
        {"in_channels": 32, "is_train_face": True, "use_rotary_positional_embeddings": True},
    ),
    "hunyuan image, concatenated": (
        "HunyuanVideoTransformer3DModel",
        {"in_channels": 33, "image_condition_type": "latent_concat", "guidance_embeds": False},
    ),
    "hunyuan image, replaced": ("HunyuanVideoTransformer3DModel", {"image_condition_type": "token_replace"}),
    "hunyuan 1.5 text": ("HunyuanVideo15Transformer3DModel", {"task_type": "t2v", "use_meanflow": True}),
    "ltx 2.3": (
        "LTX2VideoTransformer3DModel",
        {
            "audio_cross_attn_mod": True,
            "audio_gated_attn": True,
            "cross_attn_mod": True,
            "gated_attn": True,
            "perturbed_attn": True,
            "rope_type": "split",
            "use_prompt_embeddings": False,
        },
    ),
    "cosmos 2": ("CosmosTransformer3DModel", {"extra_pos_embed_type": None}),
    "cosmos 2.5 control": (
        "CosmosTransformer3DModel",
        {
            "controlnet_block_every_n": 7,
            "crossattn_proj_in_channels": 100352,
            "extra_pos_embed_type": None,
            "img_context_dim_in": 1152,
            "use_crossattn_projection": True,
        },
    ),
    "cosmos 3 omni": (
        "Cosmos3OmniTransformer",
        {"action_dim": 12, "action_gen": True, "sound_dim": 64, "sound_gen": True},
    ),
    "cosmos 3 nemotron": (
        "Cosmos3OmniTransformer",
        {"hidden_act": "relu2", "qk_norm_for_text": False, "use_und_k_norm_for_gen": True},
    ),
    "kandinsky image": (
        "Kandinsky5Transformer3DModel",
        {"attention_type": "nabla", "in_visual_dim": 16, "out_visual_dim": 16, "visual_cond": True},
    ),
}


def class_or_skip(name: str) -> Any:
    if not hasattr(diffusers, name):
        pytest.skip(f"this diffusers has no {name}")
    return getattr(diffusers, name)


@functools.cache
def twin(name: str) -> Twin:
    return Twin(class_or_skip(name))


@functools.cache
def examined(name: str, check: str) -> Result:
    return examine(twin(name), check)


@functools.cache
def variant_twin(variant: str) -> Twin:
    name, settings = VARIANTS[variant]
    if lacking := settings.keys() - defaults(class_or_skip(name)).keys():
        pytest.skip(f"this diffusers has no {', '.join(lacking)}")
    saved = {"_class_name": name, "_diffusers_version": "0.36.0", "a_setting_of_later": 3}
    return Twin(class_or_skip(name), settings | saved)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", ADAPTERS)
def test_every_family_passes_every_check_that_applies(name: str, check: str) -> None:
    result = examined(name, check)
    assert result.outcome != "failed", result.detail
    if result.outcome == "not applicable":
        pytest.skip(result.detail)


@pytest.mark.parametrize("check", ["grid", "layers", "sparse", "batch", "bfloat16", "backward"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_variants_of_a_family_pass(variant: str, check: str) -> None:
    result = examine(variant_twin(variant), check)
    assert result.outcome != "failed", result.detail


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_twin_is_small_and_keeps_what_attention_is_made_of(name: str) -> None:
    own, small = defaults(class_or_skip(name)), twin(name)
    assert sum(p.numel() for p in small.build().parameters()) < 10_000_000
    kept = ("head_dim", "patch", "rope", "axes", "norm", "rotary", "guidance", "image_condition", "pos_embed", "bias")
    changed = [key for key, value in own.items() if small.config[key] != value]
    assert not [key for key in changed if any(part in key for part in kept)]
    assert changed and small.adapter.family and small.adapter.tasks and small.adapter.layout


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_lora_changes_what_a_twin_computes(name: str) -> None:
    from vidsparse.doctor.changes import lora

    with_lora, without = twin(name).build(), twin(name).build()
    if not hasattr(with_lora, "add_adapter"):
        pytest.skip("diffusers has no adapters for it")
    lora(with_lora, torch.float32)
    found, expected = (next(iter(twin(name).outputs(model).values())) for model in (with_lora, without))
    assert (found - expected).abs().max() > 1e-2


# Broken adapters


def without_rotary(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("vidsparse_pipelines.wan.rotate_pairs", lambda x, cos, sin: x)


def without_text_mask(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(HunyuanVideoAdapter, "real_keys", lambda self, mask, batch, n: torch.ones(batch, n).bool())


def text_on_the_other_side(patch: pytest.MonkeyPatch) -> None:
    right = CogVideoXAdapter.grid

    def grid(*arguments: Any) -> VideoGrid:
        found = right(*arguments)
        return replace(found, prefix=found.suffix, suffix=found.prefix)

    patch.setattr(CogVideoXAdapter, "grid", grid)


def rows_for_columns(patch: pytest.MonkeyPatch) -> None:
    right = WanAdapter.grid

    def grid(*arguments: Any) -> VideoGrid:
        found = right(*arguments)
        return replace(found, height=found.width, width=found.height)

    patch.setattr(WanAdapter, "grid", grid)


def first_layer_only(patch: pytest.MonkeyPatch) -> None:
    right = WanAdapter.self_attentions
    patch.setattr(WanAdapter, "self_attentions", lambda self, t: dict(list(right(self, t).items())[:1]))


def weights_instead_of_modules(patch: pytest.MonkeyPatch) -> None:
    def project(attn: Any, hidden: torch.Tensor) -> Any:
        query, key, value = (hidden @ x.weight.T + x.bias for x in (attn.to_q, attn.to_k, attn.to_v))
        return tuple(x.unflatten(-1, (attn.heads, -1)) for x in (attn.norm_q(query), attn.norm_k(key), value))

    patch.setattr("vidsparse_pipelines.wan._project", project)


def no_gradient(patch: pytest.MonkeyPatch) -> None:
    right = vidsparse_pipelines.wan._project
    patch.setattr("vidsparse_pipelines.wan._project", lambda *x: tuple(y.detach() for y in right(*x)))


def backend_kept_for_itself(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(WrappedProcessor, "_attention_backend", None)


def processors_left_behind(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Run, "restore", lambda self: None)


def dense_steps_of_our_own(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("vidsparse.patterns.Dense.is_dense", lambda self, context: False)


SPARSE = {"sparse", "odd grid", "batch", "bfloat16", "backward", "checkpointing", "fused projections", "LoRA"}
SPARSE |= {"float8 storage", "group offload", "CPU offload"}
BROKEN: list[tuple[Callable[[pytest.MonkeyPatch], None], str, set[str]]] = [
    (without_rotary, "WanTransformer3DModel", SPARSE | {"keeps all"}),
    (without_text_mask, "HunyuanVideoTransformer3DModel", SPARSE | {"keeps all"}),
    (text_on_the_other_side, "CogVideoXTransformer3DModel", {"grid", "layers"}),
    (rows_for_columns, "WanTransformer3DModel", {"grid", "layers"}),
    (first_layer_only, "WanTransformer3DModel", {"layers"}),
    (
        weights_instead_of_modules,
        "WanTransformer3DModel",
        {"LoRA", "float8 storage", "CPU offload"},
    ),
    (no_gradient, "WanTransformer3DModel", {"backward", "checkpointing"}),
    (backend_kept_for_itself, "WanTransformer3DModel", {"backend"}),
    (dense_steps_of_our_own, "WanTransformer3DModel", {"dense", "backend"}),
]


@pytest.mark.parametrize(("breaks", "name", "expected"), BROKEN, ids=[breaks.__name__ for breaks, *_ in BROKEN])
def test_a_broken_adapter_fails_the_right_checks(
    monkeypatch: pytest.MonkeyPatch, breaks: Callable[[pytest.MonkeyPatch], None], name: str, expected: set[str]
) -> None:
    breaks(monkeypatch)
    results = diagnose(getattr(diffusers, name))
    assert [result.check for result in results] == list(CHECKS)
    found = {outcome: {r.check for r in results if r.outcome == outcome} for outcome in ("failed", "not applicable")}
    assert found["failed"] == expected - found["not applicable"], results


def test_restore_that_leaves_processors_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    processors_left_behind(monkeypatch)
    result = examine(twin("WanTransformer3DModel"), "restore")
    assert result.outcome == "failed" and "blocks.0.attn1 has" in result.detail


def test_an_adapter_that_raises_fails_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WanAdapter, "grid", lambda *_: {}["no such key"])
    result = examine(twin("WanTransformer3DModel"), "sparse")
    assert (result.outcome, result.detail) == ("failed", "KeyError: 'no such key'")


def test_what_diffusers_cannot_do_alone_is_not_applicable(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("no float8 here")

    monkeypatch.setattr("diffusers.WanTransformer3DModel.enable_layerwise_casting", refuse)
    result = examine(twin("WanTransformer3DModel"), "float8 storage")
    assert result.outcome == "not applicable"
    assert result.detail == "without vidsparse too: RuntimeError: no float8 here"


def test_without_peft_lora_is_not_applicable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    result = examine(twin("WanTransformer3DModel"), "LoRA")
    assert result.outcome == "not applicable" and "peft" in result.detail


# Classes from elsewhere


class ForeignWithTwin(ForeignAdapter):
    def tiny(self, config: Any) -> dict[str, Any]:
        return {}

    def example(self, transformer: Any, view: tuple[int, int, int], batch: int, noise: Any) -> dict[str, Any]:
        return {"hidden_states": noise(batch, *view, WIDTH), "timestep": 500.0}


def test_a_registered_class_is_examined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vidsparse_pipelines._REGISTERED, "Foreign", ForeignWithTwin)
    outcomes = {result.check: result.outcome for result in diagnose(Foreign)}
    refused = {"checkpointing", "fused projections", "LoRA", "float8 storage", "group offload", "backend"}
    assert outcomes == {check: "not applicable" if check in refused else "ok" for check in CHECKS}
    assert "| Foreign | `Foreign` |" in support_table({"Foreign": diagnose(Foreign)})


def test_a_class_without_adapter_or_twin_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotImplementedError, match=r"no adapter for Foreign; .*register_adapter"):
        diagnose(Foreign)
    monkeypatch.setitem(vidsparse_pipelines._REGISTERED, "Foreign", ForeignAdapter)
    with pytest.raises(NotImplementedError, match=r"ForeignAdapter describes no twin; define .* tiny and example"):
        diagnose(Foreign)


# The definition


def test_masked_refuses_a_grid_that_no_attention_has() -> None:
    it = twin("WanTransformer3DModel")
    model, pattern = it.build(), Radial(density=0.3, tile=(1, 2, 4))
    message = "no attention of WanTransformer3DModel had the 65 tokens"
    with pytest.raises(RuntimeError, match=message), masked(model, pattern, VideoGrid(5, 13, 1)):
        it.outputs(model)
    plain = torch.nn.functional.scaled_dot_product_attention
    with pytest.raises(KeyboardInterrupt), masked(model, pattern, it.grid()):
        raise KeyboardInterrupt
    assert torch.nn.functional.scaled_dot_product_attention is plain
    assert not any(module._forward_hooks for module in model.modules())


# The command line


@pytest.fixture
def vidsparse(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Runs the command line in an empty folder, with three checks: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    few = {check: CHECKS[check] for check in ("grid", "dense", "LoRA")}
    monkeypatch.setattr("vidsparse.doctor.CHECKS", few)

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            app(["doctor", *map(str, arguments)], prog_name="vidsparse")
        code = stop.value.code
        return (code if isinstance(code, int) else 0, *capsys.readouterr())

    return run


def write_settings(path: Path, **settings: Any) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(settings))


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    """The folder of a pipeline of two experts, without weights."""
    for name in ("transformer", "transformer_2"):
        write_settings(tmp_path / "model" / name / "config.json", _class_name="WanTransformer3DModel", num_layers=30)
    return tmp_path / "model"


def test_a_folder_is_diagnosed_without_weights(vidsparse: Any, pipeline: Path) -> None:
    code, out, err = vidsparse(pipeline, "--json", "found.json")
    assert code == 0, err
    assert "transformer: WanTransformer3DModel" in out and "transformer_2: WanTransformer3DModel" in out
    assert out.count("bit for bit, 2 layers") == 2
    data = json.loads(Path("found.json").read_text())
    assert data["versions"] == {"diffusers": diffusers.__version__, "torch": torch.__version__}
    assert set(data["found"]) == {"transformer", "transformer_2"} and data["not checked"] == {}
    dense = {"check": "dense", "outcome": "ok", "detail": "bit for bit, 2 layers"}
    assert data["found"]["transformer"][1] == dense


def test_a_folder_of_the_transformer_alone(vidsparse: Any, pipeline: Path) -> None:
    assert list(transformers_of(str(pipeline / "transformer"))) == ["transformer"]
    assert transformers_of("WanTransformer3DModel") == {"WanTransformer3DModel": (diffusers.WanTransformer3DModel, {})}


def test_a_failure_says_what_should_be_and_exits_with_one(vidsparse: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    dense_steps_of_our_own(monkeypatch)
    code, out, err = vidsparse("WanTransformer3DModel")
    text = " ".join(out.replace("│", " ").split())
    assert code == 1 and not err and "✗ failed" in out
    assert "should be: dense steps give what the model gives itself, bit for bit. output 0 is" in text


def test_all_families_are_one_table(vidsparse: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {name: ADAPTERS[name] for name in ("AllegroTransformer3DModel", "WanTransformer3DModel")}
    future = {"FutureTransformer3DModel": ("vidsparse_pipelines.wan", "WanAdapter")}
    monkeypatch.setattr(vidsparse_pipelines, "ADAPTERS", few | future)
    Path("README.md").write_text("before\n<!-- support -->\nold\n<!-- /support -->\nafter\n")
    code, out, err = vidsparse("--json", "found.json", "--support", "README.md")
    assert code == 0, err
    lines = [line.split() for line in out.splitlines()]
    assert ["Allegro", "✓", "✓", "-"] in lines and ["Wan", "2.1,", "2.2", "✓", "✓", "✓"] in lines
    assert any(line.startswith("not applicable: Allegro, LoRA: without vidsparse too: ") for line in out.splitlines())
    reason = f"diffusers {diffusers.__version__} has no FutureTransformer3DModel; a newer one has it"
    assert f"not checked: FutureTransformer3DModel: {reason}" in out.splitlines()
    assert json.loads(Path("found.json").read_text())["not checked"] == {"FutureTransformer3DModel": reason}
    before, *rows, after = Path("README.md").read_text().splitlines()
    assert (before, after) == ("before", "after") and rows[1].startswith("| family |") and "old" not in rows
    assert rows[3].startswith("| Allegro | `AllegroTransformer3DModel` | text to video |")
    assert rows[3].endswith("| all but LoRA |")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["NoSuchTransformer"], "model 'NoSuchTransformer' is unknown; give a folder, a Hub id such as Wan-AI/"),
        (["AutoencoderKLWan"], "no adapter for AutoencoderKLWan; vidsparse serves AllegroTransformer3DModel; "),
        (["."], "the folder . has no transformer: neither transformer/config.json nor config.json"),
        (["foreign"], f"diffusers {diffusers.__version__} has no Foreign; vidsparse.doctor.diagnose takes classes"),
        (["nameless"], "config.json of nameless names no class of diffusers"),
        (["nobody/nothing"], "cannot read the settings of model 'nobody/nothing'"),
        (["WanTransformer3DModel", "--json", "missing/a.json"], "the folder missing does not exist"),
        (["WanTransformer3DModel", "--support", "README.md"], "--support writes a table of all classes; leave out"),
        (["--support", "README.md"], "README.md has no place for the table; put <!-- support -->"),
    ],
    ids=[
        "unknown",
        "no adapter",
        "no transformer",
        "foreign",
        "nameless",
        "hub",
        "json",
        "support of one",
        "no markers",
    ],
)
def test_bad_input_is_one_line(
    vidsparse: Any, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    name = "AllegroTransformer3DModel"
    monkeypatch.setattr(vidsparse_pipelines, "ADAPTERS", {name: ADAPTERS[name]})
    write_settings(Path("foreign/config.json"), _class_name="Foreign")
    write_settings(Path("nameless/config.json"), model_type="umt5")
    Path("README.md").write_text("no markers")
    before = sorted(os.listdir())
    code, _, err = vidsparse(*arguments)
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 1 and len(errors) == 1 and says in errors[0] and "Traceback" not in err
    assert sorted(os.listdir()) == before


def test_the_table_of_the_readme_is_what_the_checks_find() -> None:
    if f"diffusers=={diffusers.__version__};" not in (ROOT / "constraints.txt").read_text():
        pytest.skip("the table is made with the diffusers of constraints.txt")
    readme = ROOT / "README.md"
    before, after = around(readme)
    table = readme.read_text(encoding="utf-8")[len(before) : -len(after)].strip()
    expected = support_table({name: tuple(examined(name, check) for check in CHECKS) for name in ADAPTERS})
    assert table == expected, "run: vidsparse doctor --support README.md"
