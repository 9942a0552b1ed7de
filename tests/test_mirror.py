"""The tests stand as the modules do: each module has a test file of its name, or a row that says what tests it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests"
PACKAGES = {
    ROOT / "vidsparse": TESTS,
    ROOT / "kernels/vidsparse_kernels": TESTS / "kernels",
    ROOT / "pipelines/vidsparse_pipelines": TESTS / "pipelines",
}

COMMANDS = ("cli/test_generate.py", "cli/test_refusals.py")
CORRECTIONS = ("corrections/test_corrections.py",)
DOCTOR = ("doctor/test_doctor.py", "doctor/test_broken_adapters.py")
FAMILIES = ("doctor/test_doctor.py",)
KERNELS = ("kernels/gpu/test_forward_backward.py", "kernels/gpu/test_operator.py", "kernels/gpu/test_machine_code.py")
SELECTION = ("kernels/selection/test_select.py", "kernels/gpu/test_machine_code.py")
TRAINING = ("finetune/test_train.py", "finetune/test_resume.py")

# Module -> the files below tests/ that test it, where none has its name.
TESTED_BY: dict[str, tuple[str, ...]] = {
    "vidsparse/bench.py": ("cli/test_patterns.py", "kernels/gpu/test_configs.py", "benchmarks/test_gpu_command.py"),
    "vidsparse/cli/__init__.py": COMMANDS,
    "vidsparse/cli/attention.py": ("cli/test_budget.py", "cli/test_lora.py"),
    "vidsparse/cli/bench.py": ("cli/test_patterns.py", "cli/test_refusals.py"),
    "vidsparse/cli/compare.py": COMMANDS,
    "vidsparse/cli/files.py": COMMANDS,
    "vidsparse/cli/frames.py": COMMANDS,
    "vidsparse/cli/inspect.py": ("cli/test_patterns.py", "cli/test_refusals.py"),
    "vidsparse/cli/libraries.py": ("cli/test_verbose.py",),
    "vidsparse/cli/messages.py": ("cli/test_refusals.py", "cli/test_patterns.py"),
    "vidsparse/cli/options.py": ("cli/test_generate.py", "cli/test_refusals.py"),
    "vidsparse/cli/pareto.py": ("cli/test_study.py",),
    "vidsparse/cli/presets.py": ("cli/test_patterns.py",),
    "vidsparse/cli/request.py": ("cli/test_refusals.py", "cli/test_lora.py", "cli/test_budget.py"),
    "vidsparse/cli/settings.py": ("cli/test_study.py",),
    "vidsparse/cli/signature.py": ("cli/test_config.py", "cli/test_generate.py", "cli/test_verbose.py"),
    "vidsparse/cli/study_run.py": ("cli/test_study.py",),
    "vidsparse/cli/study_table.py": ("cli/test_study.py",),
    "vidsparse/cli/versions.py": ("cli/test_refusals.py", "cli/test_generate.py"),
    "vidsparse/cli/video.py": ("cli/test_generate.py", "cli/test_batch.py"),
    "vidsparse/corrections/base.py": CORRECTIONS,
    "vidsparse/corrections/columns.py": (*CORRECTIONS, "corrections/test_proxy_tokens.py"),
    "vidsparse/corrections/gated_coarse.py": ("patterns/test_video_sparse.py",),
    "vidsparse/corrections/pooled_complement.py": CORRECTIONS,
    "vidsparse/corrections/proxy_weights.py": ("corrections/test_proxy_tokens.py", "runtime/test_proxies.py"),
    "vidsparse/corrections/rectified.py": CORRECTIONS,
    "vidsparse/corrections/reshaped.py": CORRECTIONS,
    "vidsparse/doctor/__init__.py": DOCTOR,
    "vidsparse/doctor/agree.py": DOCTOR,
    "vidsparse/doctor/changes.py": DOCTOR,
    "vidsparse/doctor/checks.py": DOCTOR,
    "vidsparse/doctor/layout.py": DOCTOR,
    "vidsparse/doctor/masked.py": DOCTOR,
    "vidsparse/doctor/processors.py": DOCTOR,
    "vidsparse/doctor/support.py": ("doctor/test_doctor.py", "cli/test_doctor.py"),
    "vidsparse/doctor/twin.py": DOCTOR,
    "vidsparse/doctor/under_mask.py": DOCTOR,
    "vidsparse/estimation/published.py": ("estimation/test_known.py",),
    **{
        f"vidsparse/tuning/{name}.py": ("tuning/test_tune.py",)
        for name in ("candidates", "capture", "measure", "probe", "search", "store")
    },
    "vidsparse/finetune/gate/job.py": ("finetune/gate/test_training.py", "cli/test_finetune_gate.py"),
    "vidsparse/runtime/model_settings.py": ("test_profiles.py", "runtime/test_learned_gates.py"),
    "vidsparse/finetune/checks.py": ("cli/test_finetune.py", "cli/test_refusals.py"),
    "vidsparse/cli/clip_options.py": ("cli/test_preview.py", "cli/test_finetune.py"),
    "vidsparse/generation/ffmpeg.py": ("generation/test_video_file.py",),
    "vidsparse/finetune/data/contact_page.py": ("finetune/data/test_preview.py",),
    "vidsparse/finetune/data/contact_sheet.py": ("finetune/data/test_preview.py",),
    "vidsparse/finetune/data/encoders.py": ("finetune/data/test_cache.py", "lora/test_files.py"),
    "vidsparse/finetune/data/fingerprint.py": ("finetune/data/test_cache.py",),
    "vidsparse/finetune/data/listing.py": ("finetune/data/test_captions.py",),
    "vidsparse/finetune/data/pictures.py": ("finetune/data/test_folder.py",),
    "vidsparse/finetune/data/sources.py": ("finetune/data/test_folder.py",),
    "vidsparse/finetune/data/synthetic.py": ("finetune/data/test_clips.py",),
    "vidsparse/finetune/data/tables.py": ("finetune/data/test_captions.py",),
    "vidsparse/finetune/data/tensor_file.py": ("finetune/data/test_cache.py",),
    "vidsparse/cli/generation_options.py": ("cli/test_generate.py",),
    "vidsparse/cli/finetune_options.py": ("cli/test_finetune.py",),
    "vidsparse/cli/finetune_plan.py": ("cli/test_finetune.py",),
    "vidsparse/cli/finetune_progress.py": ("cli/test_finetune.py",),
    "vidsparse/finetune/draws/example.py": ("finetune/test_objective.py",),
    "vidsparse/finetune/identity.py": ("finetune/test_resume.py",),
    **{
        f"vidsparse/finetune/families/{name}.py": ("finetune/families/test_registry.py",)
        for name in (
            *("cogvideox", "given_frame", "hunyuan_video", "kandinsky5", "levels", "ltx", "mochi", "skyreels_v2"),
            *("task", "wan"),
        )
    },
    "vidsparse/finetune/low_rank.py": ("finetune/test_targets.py", "finetune/test_learner.py"),
    "vidsparse/finetune/memory/live.py": ("finetune/memory/test_forecast.py",),
    "vidsparse/finetune/memory/plan.py": ("finetune/memory/test_forecast.py",),
    "vidsparse/finetune/optim/update.py": ("finetune/test_learner.py", "finetune/optim/test_divided.py"),
    "vidsparse/finetune/process/precision.py": TRAINING,
    "vidsparse/finetune/process/trackers.py": ("finetune/test_settings.py",),
    "vidsparse/finetune/record/log.py": ("finetune/record/test_window.py", *TRAINING),
    "vidsparse/finetune/samples.py": TRAINING,
    "vidsparse/generation/conditions.py": ("generation/test_inputs.py", "cli/test_inputs.py"),
    "vidsparse/generation/config_files.py": ("generation/test_transformers.py", "cli/test_refusals.py"),
    **{
        f"vidsparse/lora/{name}.py": ("lora/test_formats.py", "lora/test_load.py")
        for name in ("attach", "before", "fitted", "names", "renamed", "stored")
    },
    "vidsparse/lora/families.py": ("lora/test_convert.py", "lora/test_originals.py"),
    "vidsparse/lora/summary.py": ("cli/test_lora.py",),
    "vidsparse/lora/recipe.py": ("lora/test_files.py", "lora/test_refusals.py"),
    "vidsparse/lora/source.py": ("lora/test_files.py", "lora/test_refusals.py"),
    "vidsparse/patterns/base.py": ("patterns/test_every_pattern.py", "patterns/test_custom_pattern.py"),
    "vidsparse/patterns/dense.py": ("patterns/test_every_pattern.py",),
    "vidsparse/patterns/exact_blocks.py": ("patterns/test_reuse.py", "patterns/test_every_pattern.py"),
    "vidsparse/patterns/radial_raster.py": ("patterns/test_radial.py",),
    "vidsparse/pictures/style.py": ("pictures/test_map_picture.py", "pictures/test_report_picture.py"),
    "vidsparse/runtime/call.py": ("runtime/test_layer.py", "runtime/test_memory.py", "runtime/test_parallelism.py"),
    "vidsparse/runtime/recommended.py": ("test_presets.py",),
    "vidsparse/runtime/blocks.py": ("caches/test_enable.py", "runtime/test_guiders.py"),
    "vidsparse/runtime/caches.py": ("caches/test_enable.py",),
    "vidsparse/runtime/clock.py": ("runtime/test_steps.py", "runtime/test_memory.py"),
    "vidsparse/runtime/heads.py": ("runtime/test_layer.py",),
    "vidsparse/runtime/pipeline.py": ("runtime/test_steps.py",),
    "vidsparse/runtime/ranks.py": ("runtime/test_parallelism.py",),
    "vidsparse/runtime/run.py": ("runtime/test_sparsify.py", "runtime/test_memory.py"),
    "vidsparse/runtime/substitute.py": ("runtime/test_cache_context.py", "runtime/test_skip.py"),
    "vidsparse/shapes/model.py": ("generation/test_models.py", "cli/test_generate.py"),
    "vidsparse/shapes/render.py": ("shapes/test_judge.py", "shapes/test_world.py"),
    "vidsparse/shapes/track.py": ("shapes/test_judge.py",),
    "vidsparse/ui/port.py": ("ui/test_studio.py", "ui/test_form.py"),
    "kernels/vidsparse_kernels/available.py": ("kernels/gpu/gluon/test_kernel.py", "kernels/selection/test_select.py"),
    "kernels/vidsparse_kernels/cpu/attention.py": ("test_attention.py", "kernels/cpu/test_buffers.py"),
    "kernels/vidsparse_kernels/gpu/backward.py": KERNELS,
    "kernels/vidsparse_kernels/gpu/columns.py": KERNELS,
    "kernels/vidsparse_kernels/gpu/device.py": ("kernels/gpu/test_operator.py", "benchmarks/test_gpu_command.py"),
    "kernels/vidsparse_kernels/gpu/forward.py": KERNELS,
    "kernels/vidsparse_kernels/gpu/gluon/forward.py": ("kernels/gpu/gluon/test_kernel.py",),
    "kernels/vidsparse_kernels/gpu/gluon/ring.py": ("kernels/gpu/gluon/test_kernel.py",),
    "kernels/vidsparse_kernels/gpu/key_gradient.py": KERNELS,
    "kernels/vidsparse_kernels/gpu/launch.py": ("kernels/gpu/test_configs.py", "kernels/gpu/test_operator.py"),
    "kernels/vidsparse_kernels/gpu/primitives.py": KERNELS,
    "kernels/vidsparse_kernels/gpu/query_gradient.py": KERNELS,
    "kernels/vidsparse_kernels/providers/__init__.py": ("kernels/providers/test_cudnn.py",),
    "kernels/vidsparse_kernels/reference.py": ("test_attention.py",),
    "kernels/vidsparse_kernels/selection/pooling.py": SELECTION,
    "kernels/vidsparse_kernels/selection/pooling_kernel.py": SELECTION,
    "kernels/vidsparse_kernels/selection/rule.py": SELECTION,
    "kernels/vidsparse_kernels/selection/select_kernel.py": SELECTION,
    "pipelines/vidsparse_pipelines/allegro.py": ("pipelines/test_cogvideox_mochi.py", *FAMILIES),
    "pipelines/vidsparse_pipelines/anyflow_far.py": ("pipelines/test_chunked_families.py", *FAMILIES),
    "pipelines/vidsparse_pipelines/attention.py": ("pipelines/test_without_text.py", *FAMILIES),
    "pipelines/vidsparse_pipelines/cogvideox.py": ("pipelines/test_cogvideox_mochi.py", *FAMILIES),
    "pipelines/vidsparse_pipelines/coords.py": FAMILIES,
    "pipelines/vidsparse_pipelines/cosmos.py": ("pipelines/test_cosmos_kandinsky_wan.py", *FAMILIES),
    "pipelines/vidsparse_pipelines/cosmos3.py": ("pipelines/test_packed.py", *FAMILIES),
    "pipelines/vidsparse_pipelines/framepack.py": ("pipelines/test_hunyuan.py", *FAMILIES),
    "pipelines/vidsparse_pipelines/helios.py": ("pipelines/test_chunked_families.py", *FAMILIES),
    "pipelines/vidsparse_pipelines/hunyuan_video.py": ("pipelines/test_hunyuan.py", "pipelines/test_hunyuan_masks.py"),
    "pipelines/vidsparse_pipelines/hunyuan_video_15.py": ("pipelines/test_hunyuan.py", *FAMILIES),
    "pipelines/vidsparse_pipelines/kandinsky5.py": ("pipelines/test_cosmos_kandinsky_wan.py", *FAMILIES),
    "pipelines/vidsparse_pipelines/ltx2.py": ("pipelines/test_without_text.py", "pipelines/test_ltx.py"),
    "pipelines/vidsparse_pipelines/minimax_h3.py": ("pipelines/test_packed.py", *FAMILIES),
    "pipelines/vidsparse_pipelines/mochi.py": ("pipelines/test_cogvideox_mochi.py", *FAMILIES),
    "pipelines/vidsparse_pipelines/rotary.py": FAMILIES,
    "pipelines/vidsparse_pipelines/sequence_plan.py": ("runtime/test_parallelism.py",),
    "pipelines/vidsparse_pipelines/skyreels_v2.py": ("pipelines/test_cosmos_kandinsky_wan.py", *FAMILIES),
    "pipelines/vidsparse_pipelines/wan.py": ("runtime/test_sparse_model.py", "pipelines/test_sparse_pipelines.py"),
    "pipelines/vidsparse_pipelines/wan_vace.py": ("pipelines/test_cosmos_kandinsky_wan.py", *FAMILIES),
}


def defines(module: Path) -> bool:
    """Whether there is a function or a class in a module: a list of names needs no test file."""
    kinds = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef
    return any(isinstance(node, kinds) for node in ast.parse(module.read_text(encoding="utf-8")).body)


# Every module with a function or a class, and the test file of its name.
MODULES = {
    str(module.relative_to(ROOT)): tests / module.relative_to(package).with_name(f"test_{module.name}")
    for package, tests in PACKAGES.items()
    for module in sorted(package.rglob("*.py"))
    if defines(module)
}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_has_tests_of_its_name_or_a_row(module: str) -> None:
    named = MODULES[module]
    assert named.is_file() != (module in TESTED_BY), (
        f"{module}: add {named.relative_to(ROOT)}, or a row in TESTED_BY with what tests it; not both"
    )


def test_rows_name_modules_and_test_files_that_exist() -> None:
    assert len(MODULES) > 100
    assert not TESTED_BY.keys() - MODULES.keys(), "rows of modules that do not exist, or define nothing"
    files = {file for row in TESTED_BY.values() for file in row}
    assert all(TESTED_BY.values())
    assert not [file for file in sorted(files) if not (TESTS / file).is_file()]
