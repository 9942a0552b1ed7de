"""The wheel: what is in it, and that it works where nothing of the repository is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

import pytest
from needs import needs_weights

ROOT = Path(__file__).parents[1]
PROMPT = "a red circle moving left on a blue background"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # setuptools leaves its files beside what it builds
    for room in ("vidsparse", "kernels", "pipelines"):
        shutil.copytree(ROOT / room, source / room, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", str(folder), str(source)], check=True, capture_output=True, timeout=300)
    built: Path = next(folder.glob("vidsparse-*.whl"))
    return built


def test_the_wheel_has_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = {PurePosixPath(name) for name in archive.namelist()}
    packages = {"vidsparse": ROOT, "vidsparse_kernels": ROOT / "kernels", "vidsparse_pipelines": ROOT / "pipelines"}
    assert {path.parts[0] for path in inside if ".dist-info" not in path.parts[0]} == set(packages)
    ours = {
        PurePosixPath(path.relative_to(root).as_posix())
        for package, root in packages.items()
        for path in (root / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert ours == {path for path in inside if path.parts[0] in packages}


@needs_weights
def test_the_wheel_makes_a_video(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    small = ["--frames", "5", "--height", "32", "--width", "32", "--steps", "2"]
    code = "import vidsparse, vidsparse_kernels, vidsparse_pipelines as p; print(vidsparse.__file__, p.__file__)"
    for command in (["-c", code], ["-m", "vidsparse", "generate", PROMPT, *small, "-o", "a.mp4"]):
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        if command[0] == "-c":
            assert done.stdout.count(str(site)) == 2, "the repository's package hides the wheel's"
    assert (tmp_path / "a.mp4").stat().st_size > 500
