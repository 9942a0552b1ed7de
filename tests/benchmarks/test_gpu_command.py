"""What runs on a GPU, without one: plans, launches, what is saved, and the script that bounds each part's time."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import gpu  # noqa: E402
from emulator.core import compiler  # noqa: E402
from on_gpu import inside, launches, machine, plan, small, speed, tuning  # noqa: E402
from on_gpu.candidates import CANDIDATES  # noqa: E402
from on_gpu.launches import Launch  # noqa: E402
from on_gpu.saved import Results  # noqa: E402

from vidsparse_kernels.gpu import (  # noqa: E402
    configs as table,
    device as chips,
    launch,
    operator,
)

CPU = torch.device("cpu")


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (chips, launch, operator):
        monkeypatch.setattr(module, "capability", lambda device: 90)


def test_quick_looks_at_whole_and_ragged_grids_with_every_pair_of_tiles() -> None:
    planned = plan.quick(CPU, ())
    for head_dim in (32, 64, 96, 128):
        for dtype in plan.DTYPES:
            grids = {"ragged"} if dtype == torch.float32 else {"ragged", "whole"}
            pairs = {(c.rows, c.columns, c.grid) for c in planned.cases if (c.head_dim, c.dtype) == (head_dim, dtype)}
            assert pairs == {(r, c, g) for r in (64, 128) for c in (64, 128) for g in grids}
    assert planned.cases[0].dtype == torch.bfloat16 and len({str(case) for case in planned.cases}) == 80
    whole, ragged = plan.SMALL["whole"], plan.SMALL["ragged"]
    assert all(whole.padding(tile) == 0 for tile in plan.TILES.values()) and whole.prefix == whole.suffix == 0
    assert all(ragged.padding(tile) > 0 for tile in plan.TILES.values()) and ragged.prefix and ragged.suffix
    assert [str(problem) for problem in planned.problems] == ["75k, 3 heads of 128"]


def test_a_launch_takes_the_place_of_its_row_and_gives_it_back(hopper: None) -> None:
    row = Launch.parse("key_gradient,64,128,16/8/2/168")
    assert str(row) == "key_gradient,64,128,16/8/2/168" and row.config == table.Config(16, 8, 2, 168)
    before = {held: table.choose(90, "key_gradient", 2, 64, held) for held in (64, 128)}
    with launches.together((row,), CPU):
        assert table.choose(90, "key_gradient", 2, 64, 128) == row.config
        assert table.choose(90, "key_gradient", 2, 64, 64) == before[64]
        assert Launch.of_table(CPU, "key_gradient", 64, 128) == row
    with pytest.raises(KeyError), row.active(CPU):
        raise KeyError
    assert {held: table.choose(90, "key_gradient", 2, 64, held) for held in (64, 128)} == before


@pytest.mark.parametrize(
    "text", ["forward,128,128", "backward,128,128,64/8/2", "forward,96,64,64/8/2", "forward,64,64,8"]
)
def test_what_is_no_launch_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"is not forward\|query_gradient\|key_gradient,head_dim"):
        Launch.parse(text)


def test_the_forward_in_gluon_takes_the_place_of_triton_s(hopper: None, monkeypatch: pytest.MonkeyPatch) -> None:
    gluon, rival = launches.parse("forward,128,128,gluon/128/2/turns"), launches.parse("forward,128,128,64/8/2/128")
    assert isinstance(gluon, launches.GluonForward) and str(gluon) == "forward,128,128,gluon/128/2/turns"
    for module in (launches, table):
        monkeypatch.setattr(module, "gluon_lacks", lambda: None)
    with launches.together((gluon,), CPU):
        assert table.choose_gluon(90, 2, 128, 128) == gluon.config
        assert table.choose_gluon(90, 2, 64, 128) is table.choose_gluon(90, 2, 128, 64) is None
        with rival.active(CPU):
            assert table.choose_gluon(90, 2, 128, 128) is None
        assert table.choose_gluon(90, 2, 128, 128) == gluon.config
    assert table.choose_gluon(90, 2, 128, 128) is None
    monkeypatch.setattr(launches, "gluon_lacks", lambda: "is not here")
    with pytest.raises(NotImplementedError, match="the forward in Gluon is not here"), gluon.active(CPU):
        pass
    for text in ("forward,128,64,gluon/128/2", "forward,96,128,gluon/128/2", "forward,128,128,gluon/128"):
        with pytest.raises(argparse.ArgumentTypeError, match=r"is not forward,head_dim,128,gluon/step/stages"):
            launches.parse(text)


def test_candidates_fit_their_tiles(hopper: None) -> None:
    listed = list(tuning.with_table(CANDIDATES, CPU))
    assert len({str(one) for one in listed}) == len(listed) > len(CANDIDATES)
    seen: list[tuple[str, int, int]] = []
    for one in listed:
        key = one.kernel, one.head_dim, one.held
        if key not in seen:
            seen.append(key)
            assert str(one) == str(Launch.of_table(CPU, *key))
        if isinstance(one, Launch):
            assert one.config.step <= one.held and one.config.warps in (4, 8)
    assert len(seen) == 12 and [key[1:] for key in seen[:3]] == [(128, 128)] * 3
    # Each call is set up once.
    assert len(dict.fromkeys(key[1:] for key in seen)) == sum(a[1:] != b[1:] for a, b in pairwise(seen)) + 1


@dataclass(frozen=True)
class OtherKernel:
    """A candidate that is no row of the table."""

    kernel: table.Kernel = "forward"
    head_dim: int = 128
    held: int = 128

    @contextmanager
    def active(self, device: torch.device) -> Iterator[None]:
        raise RuntimeError("PassManager::run failed")
        yield

    def __str__(self) -> str:
        return "forward,128,128,other"


def test_candidates_that_fail_or_are_wrong_win_nothing(
    hopper: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: tuple[tuning.Candidate, ...] = tuple(
        Launch.parse(f"forward,128,128,{numbers}") for numbers in ("128/8/3", "64/8/3", "64/8/2/128", "32/8/2")
    )
    times = {64: 2.0, 128: 3.0}

    def figures(*_: object) -> dict[str, Any]:
        config = table.choose(90, "forward", 2, 128, 128)
        assert config is not None
        if config.registers:
            raise ArithmeticError("wrong numbers: a relative error of 0.5")
        return {"error": 0.0, "forward_ms": times[config.step], "forward_R": 1.0, "forward_tflops": 1.0}

    monkeypatch.setattr(tuning.Call, "of", lambda *_: SimpleNamespace(tensors=[], grad_out=0, block_map=0, dense=0))
    monkeypatch.setattr(speed, "sparse_figures", figures)
    search = tuning.Search(CPU, (*rows[:3], OtherKernel(), rows[3]), 1000)
    del times[128]
    results = Results(tmp_path / "tune.json")
    found = tuning.time_all(search, results)
    assert ["failed" in row for row in found] == [True, False, True, True, True]
    assert "wrong numbers" in found[2]["failed"] and "PassManager" in found[3]["failed"]
    assert [str(one) for one in tuning.fastest(search, found)] == ["forward,128,128,64/8/3"]
    saved = json.loads((tmp_path / "tune.json").read_text())
    assert saved["rows"] == found and saved["winners"] == ["forward,128,128,64/8/3"]
    results.started -= 1001
    assert tuning.time_all(search, results) == []


@dataclass(frozen=True)
class Marker(OtherKernel):
    """A candidate that leaves a file where it is tried."""

    path: str = ""
    hangs: bool = False

    @contextmanager
    def active(self, device: torch.device) -> Iterator[None]:
        Path(self.path).touch()
        time.sleep(600 if self.hangs else 0)
        yield


def test_candidates_compile_in_processes_of_their_own(tmp_path: Path) -> None:
    marks = tuple(Marker(path=str(tmp_path / name)) for name in "ab")
    tuning.compile_all(tuning.Search(CPU, marks, 300, short=plan.VideoGrid(1, 8, 8), workers=1))
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


def test_a_worker_that_hangs_is_ended_and_no_other_process(tmp_path: Path) -> None:
    other = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
    other.start()
    before = set(multiprocessing.active_children())
    hanging = Marker(path=str(tmp_path / "a"), hangs=True)
    tuning.compile_all(tuning.Search(CPU, (hanging,), 10, short=plan.VideoGrid(1, 8, 8), workers=1))
    for process in set(multiprocessing.active_children()) - before:
        process.join(10)
        assert not process.is_alive()
    assert other in before and other.is_alive()
    other.terminate()
    other.join()


def test_a_case_that_raises_is_tried_again_in_a_process_of_its_own() -> None:
    case = plan.Case(33, torch.float16, 64, 64, "whole")
    found = list(small.results(plan.Plan(CPU, (case,), (), {}, workers=1)))
    assert [(again, share) for again, share, _ in found] == [(case, float("inf"))] * 2
    assert all("NotImplementedError" in raised for *_, raised in found)


def test_winners_are_read_back(tmp_path: Path, hopper: None) -> None:
    results = Results(tmp_path / "tune.json")
    results.save(winners=["forward,128,64,64/4/2", "query_gradient,64,128,64/8/3/128"])
    assert [str(one) for one in launches.winners(results.path)] == results["winners"]
    assert launches.winners(None) == ()


def test_what_a_part_raises_is_saved_and_hides_nothing(tmp_path: Path) -> None:
    results = Results(tmp_path / "found.json")
    results.add("first", lambda: 1 / 0)
    results.add("second", lambda: {"ms": 1.0})

    def lost() -> None:
        raise torch.AcceleratorError("an illegal memory access was encountered")

    with pytest.raises(torch.AcceleratorError):
        results.add("third", lost)
    saved = json.loads((tmp_path / "found.json").read_text())
    assert "ZeroDivisionError" in saved["first"]["failed"] and saved["second"] == {"ms": 1.0}
    assert "illegal memory" in saved["third"]["failed"]


def test_wrong_tiles_get_no_time() -> None:
    errors = dict.fromkeys(plan.small_cases(), 0.5)
    assert gpu.wrong_tiles(errors, 128) == set()
    errors[plan.Case(128, torch.bfloat16, 64, 64, "whole")] = 1.5
    errors[plan.Case(64, torch.bfloat16, 128, 128, "ragged")] = float("inf")
    assert gpu.wrong_tiles(errors, 128) == {64} and gpu.wrong_tiles(errors, 64) == {128}


def test_clocks_count_while_the_device_is_busy() -> None:
    lines = (
        "2026/01/02 03:04:05.678, 345, 3201, 75.00, 30, 0\n"
        "2026/01/02 03:04:06.178, 1980, 3201, 500.50, 50, 100\n"
        "2026/01/02 03:04:06.678, 1755, 3201, 690.00, 60, 97\n"
        "2026/01/02 03:04:07.178, 1800, 3201, [N/A], 60, [N/A]\n"
        "2026/01/02 03:04:07.6"
    )
    assert machine.summary(lines) == {"sm_mhz": 1867.5, "lowest_sm_mhz": 1755.0, "watts": 595.25}
    assert machine.summary("") == {}


def test_kernels_are_told_apart_by_name() -> None:
    def event(name: str, us: float) -> SimpleNamespace:
        return SimpleNamespace(key=name, self_device_time_total=us * inside.CALLS)

    events = [event("key_gradient_kernel", 3000), event("query_gradient_kernel", 2000), event("forward_kernel", 1000)]
    events += [event("column_lists_kernel", 10), event("mark_kernel", 20), event("void at::native::sum", 7)]
    expected = dict(dk_dv=3.0, dq=2.0, forward=1.0, lists=0.03, other=0.007, all=6.037)
    assert inside.by_part(events) == pytest.approx(expected)
    assert inside.by_part([]) == {}


def test_the_kernels_that_are_told_apart_exist() -> None:
    sources = "".join(path.read_text() for path in (BENCHMARKS.parent / "kernels/vidsparse_kernels").rglob("*.py"))
    assert all(f"def {name}(" in sources for name in inside.PARTS)


def test_tflops_are_those_of_the_products() -> None:
    query = torch.empty(1, 100, 3, 64)
    assert speed.tflops(speed.FORWARD, query, 2e-12, 0.5) == pytest.approx(2 * 2 * 100 * 100 * 64 * 3 * 0.5 / 2)


# The script


def script(tmp_path: Path, *arguments: str, limit: int, python: str) -> str:
    stub = tmp_path / "python"
    stub.write_text(f"#!/bin/bash\n{python}\n")
    stub.chmod(0o755)
    environment = os.environ | {"PYTHON": str(stub), "LIMIT": str(limit)}
    command = ["bash", BENCHMARKS / "gpu.sh", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_part_that_fails_leaves_the_others_their_time(tmp_path: Path) -> None:
    printed = script(tmp_path, "first", str(tmp_path / "out"), limit=100, python='echo "ran $*"; exit 3')
    assert printed.count("exit 3") == 3 and "== done" in printed
    assert "ran benchmarks/gpu.py --quick --out" in (tmp_path / "out" / "quick.log").read_text()
    assert "--seconds" in (tmp_path / "out" / "tune.log").read_text()
    assert "tests/kernels/gpu/test_operator.py" in (tmp_path / "out" / "tests.log").read_text()


def test_a_part_that_hangs_is_ended(tmp_path: Path) -> None:
    printed = script(tmp_path, "first", str(tmp_path / "out"), limit=16, python='[ "$1" = -c ] || sleep 60')
    assert "quick: exit 124" in printed and printed.count("no time left") == 2


def test_the_second_run_takes_the_winners(tmp_path: Path) -> None:
    (tmp_path / "tune.json").write_text("{}")
    arguments = "second", str(tmp_path / "out"), "tune.json"
    script(tmp_path, *arguments, limit=60, python='echo "$*"')
    assert "--launches tune.json" in (tmp_path / "out" / "again.log").read_text()


def test_scripts_without_a_gpu_say_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    for name in ("gpu.py", "gpu_tune.py"):
        done = subprocess.run([sys.executable, BENCHMARKS / name], capture_output=True, text=True)
        assert done.returncode == 1 and "no CUDA device" in done.stderr


@pytest.mark.skipif(compiler() is None, reason="the emulator needs a C++ compiler")
def test_everything_runs_where_there_is_torch_and_triton_alone(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(str(BENCHMARKS.parent / root) for root in (".", "kernels"))
    command = [sys.executable, BENCHMARKS.parent / "tests/support/dry_gpu.py", tmp_path]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found, tuned = (json.loads((tmp_path / name).read_text()) for name in ("gpu_cpu.json", "tune.json"))
    assert len(found["errors"]) == 2 and all(0 < share <= 1 for share in found["errors"].values())
    assert "wrong" not in found and found["machine"]["torch"] == torch.__version__
    assert [row["map"] for row in found["rows"]] == ["clustered", "random"]
    for row in found["rows"]:
        assert 0 < row["error"] < 0.01 and row["forward_R"] == row["backward_R"] > 1 and row["dense"] == "sdpa/sdpa"
    assert (tmp_path / "gpu_cpu.md").read_text().count("| tiny, 2 heads of 128 |") == 2
    parts = {name.split(":")[0]: part for name, part in found.items() if isinstance(part, dict)}
    assert parts["host"]["forward_us"] > 0 and parts["selection"]["share"] == 1.0
    # Where there is no GPU, nothing says which kernel took how long, and there are no graphs.
    assert parts["milliseconds by kernel"] == {"kept": {}, "new": {}} and "no CUDA graphs" in parts["graph"]["failed"]
    assert len(tuned["rows"]) == 3 and all(row["ms"] == 1.0 and row["error"] < 0.01 for row in tuned["rows"])
    assert tuned["winners"] == [tuned["rows"][0]["candidate"]]
    assert [row["launches"] for row in tuned["together"]] == ["table", "winners"]
    launches_of = re.search(r"(\d+) launches, (\d+) kernels", done.stdout)
    assert launches_of and int(launches_of[1]) > 50 and int(launches_of[2]) >= 6
