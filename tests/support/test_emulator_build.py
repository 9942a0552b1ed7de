"""The emulator's core: built once for all processes, and put into the modules that run on a chip."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from emulator import core

pytestmark = pytest.mark.skipif(core.compiler() is None, reason="needs a C++ compiler")


@pytest.mark.machine_code
def test_a_module_that_is_first_imported_on_the_chip_forgets_it() -> None:
    from emulator import emulated

    from vidsparse_kernels.gpu import device

    late: Any = ModuleType("vidsparse_late")
    sys.modules[late.__name__] = late
    for chip in (90, 80):
        with emulated(chip):
            if chip == 90:
                late.capability = device.capability
            assert late.capability(torch.device("cpu")) == device.capability(torch.device("cpu")) == chip
    assert sys.modules.pop(late.__name__).capability is device.capability


BUILD = """
import os, sys
from pathlib import Path
tests, os.environ["XDG_CACHE_HOME"], source = sys.argv[1:]
sys.path.insert(0, tests)
from emulator import core
core.SOURCES = [Path(source)]
print(core.build())
"""


def test_several_processes_build_one_core(tmp_path: Path) -> None:
    source = tmp_path / "small.cpp"
    source.write_text('extern "C" int find(const char*) { return -1; }')
    command = [sys.executable, "-c", BUILD, *map(str, (Path(__file__).parent, tmp_path, source))]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    (library,) = {process.communicate()[0].strip() for process in started}
    assert all(process.returncode == 0 for process in started)
    assert [x.name for x in (tmp_path / "vidsparse-emulator").iterdir()] == [Path(library).name]


def test_a_compiler_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wrong.cpp").write_text("this is no C++")
    monkeypatch.setattr(core, "SOURCES", [tmp_path / "wrong.cpp"])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(RuntimeError, match="does not build the emulator"):
        core.build()
    assert not [*(tmp_path / "vidsparse-emulator").iterdir()]
    monkeypatch.setattr(core, "compiler", lambda: None)
    with pytest.raises(RuntimeError, match="needs a C\\+\\+ compiler"):
        core.build()
