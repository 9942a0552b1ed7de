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

# What each part may import besides the standard library and itself, also inside functions and under TYPE_CHECKING.
# A name stands for the module and all below it; the bare "vidsparse" stands for its public names alone, both as a
# row and as an entry. A module that no row covers fails: draw its arrows here first.
PICTURES = ("imageio", "matplotlib", "numpy", "PIL", "torchmetrics")
LIBRARY = (
    "vidsparse",
    "vidsparse.patterns",
    "vidsparse.report",
    "vidsparse.shapes",
    "vidsparse.run",
    "vidsparse.profile",
    "vidsparse.doctor",
    "vidsparse.finetune",
    "vidsparse.lora",
    "vidsparse.positions",
    "vidsparse.replacing",
    "vidsparse.sampler",
)
ARROWS: dict[str, tuple[str, ...]] = {
    "examples": (*LIBRARY, "diffusers", "torch", "transformers", *PICTURES),
    # A folder that is run as a whole: its modules find each other by their bare names.
    "examples.shapes_training": (
        "vidsparse",
        "vidsparse.shapes",
        "vidsparse_kernels",
        "vidsparse_pipelines",
        "diffusers",
        "imageio",
        "safetensors",
        "torch",
        *sorted(path.stem for path in (ROOT / "examples/shapes_training").glob("*.py")),
    ),
    "vidsparse.cli": (*LIBRARY, "vidsparse.written", "diffusers", "rich", "torch", "typer", *PICTURES),
    "vidsparse": (
        "vidsparse.attention",
        "vidsparse.block_map",
        "vidsparse.corrections",
        "vidsparse.grid",
        "vidsparse.lora",
        "vidsparse.patterns",
        "vidsparse.positions",
        "vidsparse.report",
        "vidsparse.run",
        "vidsparse.sampler",
        "vidsparse_pipelines",
    ),
    "vidsparse.finetune": (
        "accelerate",
        "diffusers",
        "imageio",
        "numpy",
        "peft",
        "safetensors",
        "torch",
        "vidsparse.corrections",
        "vidsparse.lora",
        "vidsparse.lora_source",
        "vidsparse.patterns",
        "vidsparse.positions",
        "vidsparse.replacing",
        "vidsparse.run",
        "vidsparse.sampler",
        "vidsparse.shapes",
        "vidsparse.written",
    ),
    "vidsparse.lora": (
        "diffusers",
        "peft",
        "safetensors",
        "torch",
        "vidsparse.lora_source",
        "vidsparse.positions",
        "vidsparse.recipe",
        "vidsparse.sampler",
    ),
    "vidsparse.lora_source": ("huggingface_hub",),
    "vidsparse.recipe": (
        "vidsparse.corrections",
        "vidsparse.patterns",
        "vidsparse.positions",
        "vidsparse.sampler",
        "vidsparse.written",
    ),
    "vidsparse.sampler": ("diffusers", "torch"),
    "vidsparse.replacing": (),
    "vidsparse.written": ("vidsparse.corrections", "vidsparse.patterns"),
    "vidsparse.positions": ("torch",),
    "vidsparse.doctor": (
        "accelerate",
        "diffusers",
        "peft",
        "torch",
        "vidsparse.block_map",
        "vidsparse.grid",
        "vidsparse.patterns",
        "vidsparse.run",
        "vidsparse_pipelines",
    ),
    "vidsparse.run": (
        "torch",
        "vidsparse.attention",
        "vidsparse.clock",
        "vidsparse.corrections",
        "vidsparse.layer",
        "vidsparse.patterns",
        "vidsparse.report",
        "vidsparse_pipelines",
    ),
    "vidsparse.layer": (
        "torch",
        "vidsparse.attention",
        "vidsparse.block_map",
        "vidsparse.clock",
        "vidsparse.corrections",
        "vidsparse.grid",
        "vidsparse.patterns",
        "vidsparse.report",
        "vidsparse_pipelines.base",
    ),
    "vidsparse.clock": ("torch", "vidsparse.grid", "vidsparse_pipelines.base"),
    "vidsparse.corrections": (
        "torch",
        "vidsparse.attention",
        "vidsparse.block_map",
        "vidsparse.grid",
        "vidsparse.patterns.base",
        "vidsparse_kernels",
    ),
    "vidsparse_pipelines": (
        "diffusers",
        "huggingface_hub",
        "safetensors",
        "torch",
        "vidsparse.attention",
        "vidsparse.block_map",
        "vidsparse.grid",
        "vidsparse.patterns.base",
    ),
    "vidsparse.attention": ("torch", "vidsparse.block_map", "vidsparse_kernels"),
    "vidsparse.profile": ("torch", "triton", "vidsparse.attention", "vidsparse.block_map", "vidsparse_kernels"),
    "vidsparse.report": ("torch", "vidsparse.block_map", "vidsparse.grid"),
    "vidsparse.patterns": (
        "torch",
        "vidsparse.block_map",
        "vidsparse.grid",
        "vidsparse.replacing",
        "vidsparse_kernels",
    ),
    "vidsparse.block_map": ("torch", "vidsparse.grid", "vidsparse_kernels"),
    "vidsparse.grid": (),
    "vidsparse.shapes": (
        "diffusers",
        "numpy",
        "tokenizers",
        "torch",
        "transformers",
    ),
    "vidsparse_kernels": ("torch", "triton"),
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


def violations(module: str, path: Path) -> list[str]:
    """One line "file:line imports X, allowed: ..." for each import that has no arrow."""
    rows = [row for row in ARROWS if covers(row, module)]
    if not rows:
        return [f"{path.relative_to(ROOT)}: {module} has no row in ARROWS of tests/test_imports.py"]
    row = max(rows, key=len)
    allowed = ARROWS[row]
    return [
        f"{path.relative_to(ROOT)}:{line} imports {name}, allowed: {', '.join(allowed) or 'the standard library'}"
        for line, name in imports(module, path)
        if name.split(".")[0] not in sys.stdlib_module_names
        and not any(covers(entry, name) for entry in (row, *allowed))
    ]


def fresh_interpreter(code: str) -> str:
    """Run code in a new process, outside the repository, so that nothing is imported yet."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("module", MODULES)
def test_imports_follow_the_arrows(module: str) -> None:
    found = violations(module, MODULES[module])
    assert not found, "\n".join(["", *found])


def test_files_are_short_and_named_after_what_they_hold() -> None:
    vague = [path for path in MODULES.values() if path.stem in {"utils", "common", "types", "constants"}]
    assert not vague, f"name the file after its content: {vague}"
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES.values()}
    long = {str(path.relative_to(ROOT)): lines for path, lines in lengths.items() if lines > 450}
    assert not long, f"no file has more than 450 lines: {long}"


def test_packages_are_typed() -> None:
    for package, folder in PACKAGES.items():
        assert package == "examples" or (folder / "py.typed").is_file(), f"{folder} has no py.typed"


def test_all_is_sorted_and_resolves() -> None:
    assert list(vidsparse.__all__) == sorted(vidsparse.__all__)
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


def test_parts_that_are_reached_by_their_name() -> None:
    code = "import vidsparse; print(vidsparse.patterns.Radial, vidsparse.corrections.Rectified, vidsparse.__version__)"
    assert "Radial" in subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
