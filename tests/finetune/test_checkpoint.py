"""Checkpoints: written as a whole, and a broken one is skipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from vidsparse.finetune import checkpoint


def test_checkpoints_round_trip_and_old_ones_go(tmp_path: Path) -> None:
    for step in (1, 2, 30):
        checkpoint.save_checkpoint(tmp_path, step, {"weights": torch.full((3,), float(step))}, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-0000002.pt", "step-0000030.pt"]
    state, broken = checkpoint.load_checkpoint(tmp_path)
    assert state is not None and state["step"] == 30 and state["weights"].tolist() == [30.0] * 3 and broken == []


def test_no_folder_is_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoint.load_checkpoint(tmp_path / "none") == (None, [])


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not a checkpoint"], ids=["empty", "cut", "text"])
def test_a_broken_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path, content: bytes) -> None:
    checkpoint.save_checkpoint(tmp_path, 1, {"a": torch.ones(1)}, keep=2)
    (tmp_path / "step-0000002.pt").write_bytes(content)
    state, broken = checkpoint.load_checkpoint(tmp_path)
    assert state is not None and state["step"] == 1
    assert [path.name for path in broken] == ["step-0000002.pt"]


def test_a_save_that_fails_leaves_the_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save_checkpoint(tmp_path, 1, {"a": torch.ones(1)}, keep=1)

    def full(state: Any, file: Any) -> None:
        file.write(b"half of it")
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"cannot write checkpoint .*step-0000002\.pt: .*; the earlier ones are whole"):
        checkpoint.save_checkpoint(tmp_path, 2, {"a": torch.ones(1)}, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000001.pt"]
    assert checkpoint.load_checkpoint(tmp_path)[0] is not None


def test_what_cannot_be_read_takes_no_place_of_what_can(tmp_path: Path) -> None:
    for step, keep in ((1, 1), (3, 1)):
        checkpoint.save_checkpoint(tmp_path, step, {"a": torch.ones(1)}, keep=keep)
        (tmp_path / "step-0000002.pt").write_bytes(b"half of it")
        (tmp_path / "step-0000009.pt").write_bytes(b"half of it")
        found, _ = checkpoint.load_checkpoint(tmp_path)
        assert found is not None and found["step"] == step
    checkpoint.save_checkpoint(tmp_path, 4, {"a": torch.ones(1)}, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000004.pt"]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".step-0000009-0a.pt").write_bytes(b"half of it")
    assert checkpoint.load_checkpoint(tmp_path) == (None, [])
    assert list(tmp_path.iterdir()) == []
