"""A study's summary, and the dense frames that it keeps."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vidsparse.generation.study import (
    ANOTHER_SEED,
    alone_in,
    check_space,
    keep_frames,
    read_frames,
    round_frames,
    summarise,
    to_data,
)


def report(seconds: float, psnr: float | None = None, worst: int | None = None, **more: Any) -> dict[str, Any]:
    apart = {"psnr": psnr, "ssim": 0.9, "ms_ssim": None, "flicker": 0.1, "lpips": None, "worst_frame": worst}
    apart["frame_psnr"] = [psnr, None if psnr is None else psnr - 5]
    one = {"seconds": {"denoising": seconds, "total": seconds + 1}, "density": 0.5, "judge": None, "another_seed": None}
    return {**one, "difference": apart if "apart" not in more else None, **more}


DENSE = {"a": report(4.0, apart=None), "b": report(8.0, apart=None), "c": report(6.0, apart=None)}


def test_speedups_are_of_the_same_video() -> None:
    rows = summarise({"dense": DENSE, "sparse": {"b": report(2.0, 30.0, 0), "a": report(2.0, 20.0, 1)}})
    row = rows["sparse"]
    assert row.videos == 2 and row.seconds is not None and row.speedup is not None
    assert (row.seconds.median, row.speedup.median, row.speedup.low, row.speedup.high) == (2.0, 3.0, 2.0, 4.0)
    assert row.measures["psnr"].mean == 25 and "ms_ssim" not in row.measures and not row.judge
    assert row.worst == ("a", 1) and row.identical == 0
    assert to_data(rows)["dense"]["measures"] == {} and rows["dense"].worst is None


def test_identical_videos_are_counted_and_left_out_of_the_mean() -> None:
    row = summarise({"dense": DENSE, "same": {"a": report(2.0), "b": report(2.0, 40.0, 0)}})["same"]
    assert row.identical == 1 and row.measures["psnr"].count == 1 and row.measures["ssim"].count == 2
    alone = summarise({"dense": DENSE, "same": {"a": report(2.0)}})["same"]
    assert "psnr" not in alone.measures and alone.worst is None


def test_a_pipeline_that_tells_no_steps_is_timed_as_a_whole() -> None:
    silent = {"a": report(1.0) | {"seconds": {"denoising": None, "total": 5.0}}}
    row = summarise({"dense": silent, "sparse": silent})["sparse"]
    assert row.seconds is not None and row.seconds.median == 5 and row.speedup is not None and row.speedup.median == 1


def test_the_judge_and_another_seed() -> None:
    judged = {
        "a": report(1.0, judge={"colour": 1.0, "mean": 0.5}),
        "b": report(1.0, judge={"colour": 0.0, "mean": 0.7}),
    }
    judged["b"]["another_seed"] = report(1.0, 12.0, 1)["difference"]
    rows = summarise({"dense": judged, "none yet": {}})
    assert rows["dense"].judge["mean"].mean == pytest.approx(0.6) and rows["dense"].judge["colour"].mean == 0.5
    assert rows[ANOTHER_SEED].measures["psnr"].mean == 12 and rows[ANOTHER_SEED].seconds is None
    assert list(rows) == ["dense", ANOTHER_SEED], "a setting without a video has no row"
    assert summarise({"dense": {}}) == {}


def test_frames_are_kept_as_they_are(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).random((2, 4, 6, 3), dtype=np.float32) * 1.2 - 0.1
    keep_frames(tmp_path / "a.npy", frames)
    found = read_frames(tmp_path / "a.npy")
    assert np.array_equal(found, round_frames(frames)) and np.array_equal(round_frames(found), found)
    assert np.abs(found - frames.clip(0, 1)).max() < 1e-5 and found.dtype == np.float32
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]
    (tmp_path / "a.npy").write_bytes(b"half")
    for name in ("a.npy", "none.npy"):
        with pytest.raises(OSError, match=f"the frames of a dense video, .*{name}, cannot be read"):
            read_frames(tmp_path / name)


def test_a_disk_that_is_too_small_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10 * 5 * 32 * 48 * 6 - 1))
    check_space(tmp_path / "new" / "out", 9, (5, 32, 48))
    check_space(tmp_path, 10, (5, None, None))
    with pytest.raises(OSError, match=r"the 10 dense videos need 0\.000461 GB, and the disk of .* free; take another"):
        check_space(tmp_path / "new" / "out", 10, (5, 32, 48))


def test_a_study_has_one_process(tmp_path: Path) -> None:
    with alone_in(tmp_path), pytest.raises(RuntimeError, match="another process is working on"), alone_in(tmp_path):
        pass
    with alone_in(tmp_path):
        pass
