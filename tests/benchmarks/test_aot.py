"""Tuned configurations, compiled for the chips that they are meant for: the right matrix unit, enough room."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("triton")
from vidsparse_kernels.gpu import configs

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "aot.py"


@pytest.fixture(scope="module")
def aot() -> ModuleType:
    spec = importlib.util.spec_from_file_location("aot", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["aot"] = module  # where a dataclass looks for its annotations
    spec.loader.exec_module(module)
    return module


def compiling(*command: object) -> subprocess.CompletedProcess[str]:
    """Run a script in a process of its own: where kernels are interpreted, they cannot be compiled."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, *map(str, command)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.mark.parametrize("chip", [90, 120])
def test_launches_bind_and_compile(chip: int) -> None:
    assert (
        f"launches bound and compiled for sm_{chip}"
        in compiling(SCRIPT.parents[1] / "tests/support/dry_launch.py", chip).stdout
    )


def test_every_tuned_configuration_compiles(tmp_path: Path) -> None:
    """Of the chips with boxes, in bfloat16; test_machine_code.py compiles float32 and the others, to the assembler."""
    done = compiling(SCRIPT, "--chip", 90, "--chip", 100, "--dtype", "bf16", "--out", tmp_path / "aot.md")
    number = sum(
        config is not None
        for (chip, _), rows in configs.TABLE.items()
        for (itemsize, _), configs in rows.items()
        for config in configs
        if chip in (90, 100) and itemsize == 2
    )
    number += sum(map(len, configs.GLUON_CANDIDATES.values()))
    number += 2 * 8  # the kernels beside them: chips, and two of each kernel, head_dim and tile
    assert number > 40 and f"{number} configurations" in done.stdout and "0 with faults" in done.stdout
    table = [line for line in (tmp_path / "aot.md").read_text().splitlines() if line.startswith("| sm_")]
    assert len(table) == number


def test_faults_are_found(aot: ModuleType) -> None:
    build = aot.Build(90, "forward", 2, 128, 128, configs.Config(128, 8, 2))
    good = aot.Needs(200, 0, 200000, 2, "wgmma.mma_async", 0)
    assert aot.faults(build, good) == aot.faults(build, replace(good, stack=8)) == []
    faulty = {
        "232449 bytes of shared memory, of 232448": replace(good, shared=232449),
        "products by mma.sync, not wgmma.mma_async": replace(good, unit="mma.sync"),
        "products by wgmma.mma_async without TMA, not wgmma": replace(good, unit="wgmma.mma_async without TMA"),
        "2 boxes go through registers": replace(good, round_trips=2),
    }
    for message, needed in faulty.items():
        (found,) = aot.faults(build, needed)
        assert found.startswith(message)
    small = replace(build, capability=120)
    assert aot.faults(small, replace(good, shared=101377, unit="mma.sync")) == [
        "101377 bytes of shared memory, of 101376"
    ]
