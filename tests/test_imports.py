"""The import arrows, read from the source with `ast`, and what a fresh interpreter may load."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import vidsparse

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "vidsparse": ROOT / "vidsparse",
    "vidsparse_kernels": ROOT / "kernels/vidsparse_kernels",
    "vidsparse_pipelines": ROOT / "pipelines/vidsparse_pipelines",
    "examples": ROOT / "examples",
}

# What each part imports besides the standard library and itself, in inside functions and under TYPE_CHECKING: no more,
# and no arrow without an import. A name stands for the module and all below it; the bare "vidsparse" stands for its
# public names alone, both as a row and as an entry. A module that no row covers fails: draw its arrows here first.
ARROWS: dict[str, tuple[str, ...]] = {
    "examples": (
        *("diffusers", "torch", "vidsparse", "vidsparse.finetune", "vidsparse.shapes.model"),
        "vidsparse_pipelines.rotary",
    ),
    "examples.families": ("diffusers", "huggingface_hub", "torch", "transformers", "vidsparse"),
    "examples.modular": ("diffusers", "vidsparse", "vidsparse.patterns.names"),
    # A folder that is run as a whole: its modules find each other by their bare names.
    "examples.shapes_training": (
        *("diffusers", "imageio", "safetensors", "torch", "vidsparse", "vidsparse.atomic", "vidsparse.runtime.adapter"),
        *("vidsparse.generation.frames", "vidsparse.grid", "vidsparse.patterns", "vidsparse.profiles"),
        *("vidsparse.runtime.model_settings", "vidsparse.runtime.sparsify", "vidsparse.serialize"),
        *("vidsparse.shapes", "vidsparse.tuning"),
        *("vidsparse_kernels.cpu.threads", "vidsparse_pipelines.wan"),
        *sorted(path.stem for path in (ROOT / "examples/shapes_training").glob("*.py") if path.stem != "__main__"),
    ),
    "vidsparse.cli": (
        *("diffusers", "matplotlib", "rich", "torch", "typer", "yaml"),
        *("vidsparse", "vidsparse.atomic", "vidsparse.attention", "vidsparse.bench", "vidsparse.doctor"),
        *("vidsparse.estimation", "vidsparse.finetune", "vidsparse.generation", "vidsparse.lora"),
        *("vidsparse.patterns.describe", "vidsparse.patterns.foreign"),
        *("vidsparse.patterns.names", "vidsparse.patterns.schedule", "vidsparse.pictures.map_picture"),
        "vidsparse.pictures.recall_picture",
        *("vidsparse.presets", "vidsparse.tuning", "vidsparse.ui", "vidsparse.webpage"),
    ),
    "vidsparse.ui": (
        *("gradio", "vidsparse", "vidsparse.corrections", "vidsparse.generation", "vidsparse.patterns"),
        "vidsparse.presets",
    ),
    "vidsparse.webpage": ("jinja2", "markupsafe", "vidsparse.atomic"),
    "vidsparse.__main__": ("vidsparse.cli",),
    "vidsparse.caches": (
        *("diffusers", "torch", "vidsparse.runtime.blocks", "vidsparse.runtime.caches"),
        *("vidsparse.runtime.pipeline", "vidsparse.runtime.registry", "vidsparse.runtime.skip"),
    ),
    "vidsparse": ("lazy_loader",),  # what it exports stands in __init__.pyi
    "vidsparse.finetune": (
        *("PIL", "accelerate", "deepspeed", "diffusers", "filelock", "matplotlib", "numpy", "peft", "torch"),
        *(
            "torchao",
            "vidsparse.atomic",
            "vidsparse.corrections",
            "vidsparse.estimation",
            "vidsparse.finetune.data",
            "vidsparse.generation",
        ),
        *("vidsparse.block_map", "vidsparse.grid", "vidsparse.lora", "vidsparse.patterns", "vidsparse.runtime.adapter"),
        *("vidsparse.runtime.model_settings", "vidsparse.runtime.parallelism", "vidsparse.runtime.pipeline"),
        *(
            "vidsparse.runtime.proxies",
            "vidsparse.runtime.ranks",
            "vidsparse.runtime.registry",
            "vidsparse.runtime.run",
            "vidsparse.runtime.sharing",
        ),
        *("vidsparse.runtime.sparsify", "vidsparse.serialize"),
    ),
    "vidsparse.finetune.data": (
        "vidsparse.finetune.families",
        *("PIL", "matplotlib", "numpy", "safetensors", "torch", "vidsparse.atomic", "vidsparse.generation.media"),
        *("vidsparse.generation.video_file", "vidsparse.grid", "vidsparse.shapes"),
    ),
    "vidsparse.doctor": (
        *("accelerate", "diffusers", "peft", "torch", "vidsparse.atomic", "vidsparse.block_map"),
        *("vidsparse.generation.transformers", "vidsparse.grid", "vidsparse.patterns", "vidsparse.runtime"),
    ),
    "vidsparse.estimation": (
        *("torch", "vidsparse.attention", "vidsparse.doctor.twin", "vidsparse.generation", "vidsparse.patterns"),
        *("vidsparse.presets", "vidsparse.runtime.registry"),
    ),
    "vidsparse.generation": (
        *("PIL", "diffusers", "filelock", "huggingface_hub", "imageio", "imageio_ffmpeg", "numpy", "torch"),
        *(
            "torchmetrics",
            "vidsparse.atomic",
            "vidsparse.attention",
            "vidsparse.block_map",
            "vidsparse.corrections",
            "vidsparse.grid",
            "vidsparse.lora",
        ),
        *("vidsparse.patterns", "vidsparse.presets", "vidsparse.runtime", "vidsparse.shapes", "vidsparse_pipelines"),
    ),
    "vidsparse.lora": (
        *("huggingface_hub", "peft", "safetensors", "torch"),
        *("vidsparse.atomic", "vidsparse.corrections", "vidsparse.grid", "vidsparse.patterns", "vidsparse.serialize"),
        *("vidsparse.generation.frames", "vidsparse.generation.positions", "vidsparse.generation.scheduler"),
        *("vidsparse.generation.transformers", "vidsparse.runtime.pipeline", "vidsparse.runtime.proxies"),
        *("vidsparse.runtime.registry", "vidsparse.shapes.shipped", "vidsparse_pipelines"),
    ),
    "vidsparse.patterns.names": ("vidsparse.corrections", "vidsparse.patterns", "vidsparse.serialize"),
    "vidsparse.patterns.describe": ("vidsparse.patterns", "vidsparse.patterns.foreign", "vidsparse.patterns.names"),
    "vidsparse.pictures.plot": (
        *("matplotlib", "vidsparse.block_map", "vidsparse.grid", "vidsparse.patterns", "vidsparse.pictures"),
        *("vidsparse.runtime.chosen", "vidsparse.runtime.report", "vidsparse.runtime.run"),
    ),
    # It takes what has the attributes of a map or a report: maps, patterns and reports call it to show themselves.
    "vidsparse.pictures": ("matplotlib", "torch", "vidsparse.grid", "vidsparse_kernels.layout"),
    "vidsparse.serialize": ("vidsparse.corrections", "vidsparse.patterns"),
    "vidsparse.runtime": (
        *("accelerate", "diffusers", "huggingface_hub", "safetensors", "torch"),
        *("vidsparse.attention", "vidsparse.block_map", "vidsparse.corrections", "vidsparse.grid"),
        *("vidsparse.patterns", "vidsparse.pictures", "vidsparse.presets"),
        *("vidsparse_kernels.layout", "vidsparse_pipelines"),
    ),
    "vidsparse.presets": (
        *("vidsparse.corrections", "vidsparse.patterns", "vidsparse.serialize", "vidsparse.shapes.shipped"),
    ),
    "vidsparse.profiles": (
        *("huggingface_hub", "pydantic", "torch", "vidsparse.atomic", "vidsparse.generation.config_files"),
        *("vidsparse.grid", "vidsparse.patterns", "vidsparse.runtime.model_settings", "vidsparse.runtime.pipeline"),
        *("vidsparse.runtime.registry", "vidsparse.serialize", "vidsparse.shapes.shipped"),
    ),
    "vidsparse.tuning": (
        *("numpy", "torch", "vidsparse", "vidsparse.atomic", "vidsparse.attention", "vidsparse.block_map"),
        *("vidsparse.generation", "vidsparse.grid", "vidsparse.patterns", "vidsparse.profiles", "vidsparse.runtime"),
        "vidsparse.serialize",
    ),
    "vidsparse.corrections": (
        *("torch", "vidsparse.attention", "vidsparse.block_map", "vidsparse.grid", "vidsparse.patterns.base"),
        *("vidsparse.patterns.fields", "vidsparse_kernels.layout", "vidsparse_kernels.selection"),
    ),
    "vidsparse.patterns": (
        *("safetensors", "torch", "vidsparse.atomic", "vidsparse.block_map", "vidsparse.grid", "vidsparse.pictures"),
        *("vidsparse.volume", "vidsparse_kernels.layout", "vidsparse_kernels.selection"),
    ),
    "vidsparse.bench": (
        *("torch", "vidsparse.attention", "vidsparse.block_map", "vidsparse.runtime.stopwatch"),
        *("vidsparse_kernels.gpu.configs", "vidsparse_kernels.gpu.device"),
    ),
    "vidsparse.attention": (
        *("torch", "vidsparse.block_map", "vidsparse_kernels.available", "vidsparse_kernels.cpu"),
        *("vidsparse_kernels.gpu", "vidsparse_kernels.providers", "vidsparse_kernels.reference"),
        "vidsparse_kernels.trial",
    ),
    "vidsparse.block_map": (
        *("torch", "vidsparse.grid", "vidsparse.pictures"),
        *("vidsparse_kernels.gpu.lists", "vidsparse_kernels.layout", "vidsparse_kernels.providers.runs"),
        "vidsparse_kernels.reference",
    ),
    "vidsparse.volume": ("torch", "vidsparse.block_map", "vidsparse.grid", "vidsparse_kernels.volume"),
    "vidsparse.grid": ("vidsparse_kernels.layout",),
    "vidsparse.atomic": (),
    "vidsparse.shapes": ("diffusers", "tokenizers", "torch", "transformers"),
    "vidsparse_pipelines": ("diffusers", "torch", "vidsparse.grid", "vidsparse.runtime.adapter"),
    "vidsparse_kernels.trial": (
        *("torch", "vidsparse_kernels.available", "vidsparse_kernels.gpu", "vidsparse_kernels.layout"),
        *("vidsparse_kernels.providers", "vidsparse_kernels.reference"),
    ),
    "vidsparse_kernels.providers": ("cutlass", "flash_attn", "torch", "vidsparse_kernels.layout"),
    "vidsparse_kernels.gpu": (*("torch", "triton", "vidsparse_kernels.available", "vidsparse_kernels.layout"),),
    "vidsparse_kernels.selection": (
        *("torch", "triton", "vidsparse_kernels.available", "vidsparse_kernels.gpu.primitives"),
        "vidsparse_kernels.layout",
    ),
    "vidsparse_kernels.cpu": ("torch", "vidsparse_kernels.layout"),
    "vidsparse_kernels.available": ("torch", "triton", "vidsparse_kernels.gpu"),
    "vidsparse_kernels.layout": ("torch",),
    "vidsparse_kernels.volume": ("torch", "vidsparse_kernels.layout"),
    "vidsparse_kernels.reference": ("torch", "vidsparse_kernels.layout"),
    "vidsparse_kernels": (),
}


def modules() -> dict[str, Path]:
    """Dotted name -> file of every module of the three packages and of the examples."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = (package, *path.relative_to(folder).with_suffix("").parts)
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def covers(entry: str, module: str) -> bool:
    return module == entry or (entry != "vidsparse" and module.startswith(f"{entry}."))


def imports(module: str, path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every module that a file imports, wherever the statement stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
                base = ".".join([*package[: len(package) - node.level + 1], *base.split(".")]).rstrip(".")
            for alias in node.names:
                submodule = f"{base}.{alias.name}"
                yield node.lineno, submodule if submodule in MODULES else base


def row_of(module: str) -> str:
    """The longest row that covers a module."""
    rows = [row for row in ARROWS if covers(row, module)]
    assert rows, f"{module} has no row in ARROWS of tests/test_imports.py"
    return max(rows, key=len)


def leaving(row: str) -> Iterator[tuple[str, str]]:
    """Where ("file:line") and what the modules of a row import from elsewhere."""
    for module, path in MODULES.items():
        if row_of(module) == row:
            for line, name in imports(module, path):
                if name.split(".")[0] not in sys.stdlib_module_names and row_of_import(name) != row:
                    yield f"{path.relative_to(ROOT)}:{line}", name


def row_of_import(name: str) -> str:
    """The row of a module of ours, or the name itself."""
    return row_of(name) if name in MODULES else name


def fresh_interpreter(code: str) -> str:
    """Run code in a new process, outside the repository, so that nothing is imported yet."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("row", ARROWS)
def test_imports_are_the_arrows(row: str) -> None:
    found = list(leaving(row))
    strays = [f"{place} imports {name}" for place, name in found if not any(covers(a, name) for a in ARROWS[row])]
    assert not strays, "\n".join(["", *strays, f"{row} may import: {', '.join(ARROWS[row]) or 'nothing'}"])
    unused = [arrow for arrow in ARROWS[row] if not any(covers(arrow, name) for _, name in found)]
    assert not unused, f"arrows of {row} that no import uses: {unused}"


def test_only_the_command_line_knows_the_command_line() -> None:
    """Nor do typer and rich stand elsewhere; benchmarks have no rows of their own."""
    benchmarks = {f"benchmarks.{path.stem}": path for path in (ROOT / "benchmarks").rglob("*.py")}
    assert len(benchmarks) > 20
    strays = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for module, path in {**MODULES, **benchmarks}.items()
        if not covers("vidsparse.cli", module) and module != "vidsparse.__main__"
        for line, name in imports(module, path)
        if name.split(".")[0] in ("rich", "typer") or covers("vidsparse.cli", name)
    ]
    assert not strays, strays


def test_shapes_is_reached_through_the_known_models() -> None:
    for module, path in MODULES.items():
        if covers("vidsparse.generation", module) or covers("vidsparse.cli", module):
            found = [name for _, name in imports(module, path) if covers("vidsparse.shapes", name)]
            assert not found or module in ("vidsparse.generation.models",), f"{module} imports {found}"


def test_every_module_has_a_row() -> None:
    for module in MODULES:
        row_of(module)


def test_files_are_short_and_named_after_what_they_hold() -> None:
    vague = [path for path in MODULES.values() if path.stem in {"utils", "common", "types", "constants"}]
    assert not vague, f"name the file after its content: {vague}"
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES.values()}
    long = {str(path.relative_to(ROOT)): lines for path, lines in lengths.items() if lines > 450}
    assert not long, f"no file has more than 450 lines: {long}"


def test_packages_are_typed() -> None:
    for package, folder in PACKAGES.items():
        assert package == "examples" or (folder / "py.typed").is_file(), f"{folder} has no py.typed"


def test_public_names_resolve() -> None:
    missing = [name for name in vidsparse.__all__ if not hasattr(vidsparse, name)]
    assert not missing, f"vidsparse.__all__ names what vidsparse has not: {missing}"


def test_package_imports_without_triton_peft_and_imageio() -> None:
    fresh_interpreter(
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['triton', 'peft', 'imageio']))\n"  # None: as if not installed
        "import vidsparse, vidsparse_kernels, vidsparse_pipelines\n"
        "for name in vidsparse.__all__:\n"
        "    getattr(vidsparse, name)\n"
    )


def test_importing_the_library_does_not_import_dynamo() -> None:
    # It takes about as long as torch itself. What of ours imports diffusers gets it from there.
    fresh_interpreter(
        "import sys, importlib\n"
        "for name in ('vidsparse', 'vidsparse.patterns', 'vidsparse.corrections', 'vidsparse.bench'):\n"
        "    importlib.import_module(name)\n"
        "import vidsparse\n"
        "vidsparse.sparsify, vidsparse.Run, vidsparse.Report, vidsparse.attn_processors, vidsparse.register_adapter\n"
        "vidsparse.sparse_attention, vidsparse.load_gates\n"
        "loaded = [name for name in sys.modules if name.startswith('torch._dynamo')]\n"
        "assert not loaded, f'loaded by import: {loaded[:3]}'\n"
    )


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"]], ids=" ".join)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    output = fresh_interpreter(
        "import sys\n"
        "from vidsparse.cli import main\n"
        f"sys.argv = ['vidsparse', *{arguments}]\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as stop:\n"
        "    assert not stop.code, stop.code\n"
        "heavy = {'diffusers', 'imageio', 'matplotlib', 'numpy', 'torch', 'transformers'} & sys.modules.keys()\n"
        "assert not heavy, f'loaded for the help text: {sorted(heavy)}'\n"
    )
    assert "Usage" in output


def test_completion_loads_nothing_heavy() -> None:
    output = fresh_interpreter(
        "import os, sys\n"
        "os.environ.update(_VIDSPARSE_COMPLETE='complete_bash', COMP_CWORD='4')\n"
        "os.environ['COMP_WORDS'] = 'vidsparse generate --dtype bf16 --dr'\n"
        "from vidsparse.cli import main\n"
        "sys.argv = ['vidsparse']\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as stop:\n"
        "    assert not stop.code, stop.code\n"
        "heavy = {'diffusers', 'imageio', 'matplotlib', 'numpy', 'torch', 'transformers'} & sys.modules.keys()\n"
        "assert not heavy, f'loaded for a completion: {sorted(heavy)}'\n"
    )
    assert output.split() == ["--dry-run"]


def test_parts_that_are_reached_by_their_name() -> None:
    code = "import vidsparse; print(vidsparse.patterns.Radial, vidsparse.corrections.Rectified, vidsparse.__version__)"
    assert "Radial" in subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
