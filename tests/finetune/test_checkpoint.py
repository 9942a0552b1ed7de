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
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-0000002", "step-0000030"]
    state, broken = checkpoint.load_checkpoint(tmp_path)
    assert state is not None and state["step"] == 30 and state["weights"].tolist() == [30.0] * 3 and broken == []


def test_no_folder_is_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoint.load_checkpoint(tmp_path / "none") == (None, [])


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04", b"text"], ids=["missing", "empty", "cut", "text"])
def test_a_broken_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path, content: bytes | None) -> None:
    checkpoint.save_checkpoint(tmp_path, 1, {"a": torch.ones(1)}, keep=2)
    break_one(tmp_path, 2, content)
    state, broken = checkpoint.load_checkpoint(tmp_path)
    assert state is not None and state["step"] == 1
    assert [path.name for path in broken] == ["step-0000002"]
    checkpoint.save_checkpoint(tmp_path, 2, {"a": torch.ones(1)}, keep=2)
    assert checkpoint.load_checkpoint(tmp_path)[0] == {"a": torch.ones(1), "step": 2}


def test_the_file_of_an_earlier_version_is_read_and_replaced(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1), "step": 5}, tmp_path / "step-0000005.pt")
    state, broken = checkpoint.load_checkpoint(tmp_path)
    assert state is not None and state["step"] == 5 and not broken
    checkpoint.save_checkpoint(tmp_path, 6, {"a": torch.ones(1)}, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000006"]


def test_a_checkpoint_has_what_else_is_written(tmp_path: Path) -> None:
    path = checkpoint.save_checkpoint(
        tmp_path, 1, {}, keep=1, write_lora=lambda folder: (folder / "lora").write_text("here")
    )
    assert path == tmp_path / "step-0000001" and (path / "lora").read_text() == "here"


def break_one(folder: Path, step: int, content: bytes | None) -> None:
    path = folder / f"step-{step:07d}"
    path.mkdir(exist_ok=True)
    if content is not None:
        (path / "state.pt").write_bytes(content)


def test_a_save_that_fails_leaves_the_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save_checkpoint(tmp_path, 1, {"a": torch.ones(1)}, keep=1)

    def full(state: Any, file: Any) -> None:
        file.write(b"half of it")
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"cannot write checkpoint .*step-0000002: .*; the earlier ones are whole"):
        checkpoint.save_checkpoint(tmp_path, 2, {"a": torch.ones(1)}, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000001"]
    assert checkpoint.load_checkpoint(tmp_path)[0] is not None


def test_what_cannot_be_read_takes_no_place_of_what_can(tmp_path: Path) -> None:
    for step, keep in ((1, 1), (3, 1)):
        checkpoint.save_checkpoint(tmp_path, step, {"a": torch.ones(1)}, keep=keep)
        break_one(tmp_path, 2, b"half of it")
        break_one(tmp_path, 9, b"half of it")
        found, _ = checkpoint.load_checkpoint(tmp_path)
        assert found is not None and found["step"] == step
    checkpoint.save_checkpoint(tmp_path, 4, {"a": torch.ones(1)}, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000004"]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".step-0000009-0a.pt").write_bytes(b"half of it")
    (tmp_path / ".step-0000009-0b").mkdir()
    (tmp_path / ".step-0000009-0b/state.pt").write_bytes(b"half of it")
    assert checkpoint.load_checkpoint(tmp_path) == (None, [])
    assert list(tmp_path.iterdir()) == []
