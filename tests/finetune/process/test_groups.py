"""Processes share a clip of a training, and learn what one process learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from shared_training import Asked, train_on
from tiny_training import PATTERN, SMALL, lines, pipeline, train
from trained_families import CASES

from vidsparse import Dense
from vidsparse.finetune import Bucket, Settings, check_pipeline
from vidsparse.finetune.checks import check_device
from vidsparse.finetune.families import task_for
from vidsparse.finetune.process.groups import Groups, check_sharing

TOKENS = 48  # of the small clips
ODD = Bucket(9, 12, 20)  # 3x3x5 tokens
# A gradient is a sum over tokens, and each addition rounds.
ROUNDING = TOKENS * torch.finfo(torch.float32).eps
CLIP: dict[str, Any] = dict(heads=2, log_every=1)
WATCHED = CLIP | dict(videos=5, validation_share=0.2, samples=True, sample_every=4, sample_steps=2, inference_steps=6)
UNEVEN = CLIP | dict(bucket=ODD, gradient_checkpointing=True, batch=2, videos=5, validation_share=0.2)
AWAY = UNEVEN | dict(offload_base=True, offload_activations=True)


def shared(changes: dict[str, Any]) -> dict[str, Any]:
    return {**changes, "context_parallel": 2}


def assert_learned_alike(
    found: Path, weights: dict[str, torch.Tensor], one: Path, alone: dict[str, torch.Tensor]
) -> None:
    """The logs are the same but for rounding, and so are the weights.

    AdamW divides a gradient by its own size: a step moves a weight by its gradient's relative error times the rate.
    Those whose gradients are about 0 move further, so the bound is for the root of the mean square.
    """
    assert weights.keys() == alone.keys()
    moved = torch.cat([(weights[name] - alone[name]).flatten() for name in alone])
    assert float(moved.square().mean().sqrt()) <= SMALL["steps"] * SMALL["learning_rate"] * ROUNDING
    assert any(float(weight.abs().max()) > 1e-3 for name, weight in weights.items() if "lora_B" in name)
    logs = lines(found), lines(one)
    assert len(logs[0]) == len(logs[1])
    for line, other in zip(*logs, strict=True):
        assert line["step"] == other["step"]
        for name in ("loss", "grad_norm", "density", "validation_loss", "learning_rate"):
            assert line.get(name) == (None if other.get(name) is None else pytest.approx(other[name], rel=ROUNDING))
        assert line.get("loss_by_level", {}).keys() == other.get("loss_by_level", {}).keys()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> dict[str, tuple[Path, dict[str, torch.Tensor]]]:
    """What one process learns."""
    kinds = {"watched": WATCHED, "uneven": UNEVEN, "plain": CLIP, "stopped": {**CLIP, "steps": 2}}
    folders = {name: tmp_path_factory.mktemp("alone") for name in kinds}
    return {name: (folders[name], train(folders[name], cache, **changes)) for name, changes in kinds.items()}


def test_two_processes_learn_from_one_clip_what_one_process_learns(
    tmp_path: Path, cache: Path, alone: dict[str, tuple[Path, dict[str, torch.Tensor]]]
) -> None:
    asked = {
        "watched": Asked(tmp_path / "watched", False, shared(WATCHED)),
        "uneven": Asked(tmp_path / "fsdp", True, shared(UNEVEN)),
        "away": Asked(tmp_path / "away", False, shared(AWAY)),
        "begun": Asked(tmp_path / "begun", False, shared({**CLIP, "steps": 2})),
        "continued": Asked(alone["stopped"][0], False, shared(CLIP)),
    }
    found = dict(zip(asked, train_on(2, cache, list(asked.values())), strict=True))
    assert_learned_alike(asked["watched"].folder, found["watched"], *alone["watched"])
    assert_learned_alike(asked["uneven"].folder, found["uneven"], *alone["uneven"])
    assert_learned_alike(asked["away"].folder, found["away"], *alone["uneven"])
    videos = sorted(path.name for path in (asked["watched"].folder / "samples").iterdir())
    assert videos == [f"step-000000{step}-0.mp4" for step in (0, 4)]
    # Begun in one process and continued in two, and the other way round.
    assert_learned_alike(alone["stopped"][0], found["continued"], *alone["plain"])
    said: list[str] = []
    weights = train(asked["begun"].folder, cache, **CLIP, say=said.append)
    assert said == ["resuming from step 2"]
    assert_learned_alike(asked["begun"].folder, weights, *alone["plain"])


def test_two_groups_of_two_learn_from_two_clips(tmp_path: Path, cache: Path) -> None:
    changes = dict(heads=4, log_every=1, videos=5, validation_share=0.2, steps=2)
    one = train(tmp_path / "one", cache, **changes, batch=2)
    (found,) = train_on(4, cache, [Asked(tmp_path / "four", False, shared(changes))])
    assert_learned_alike(tmp_path / "four", found, tmp_path / "one", one)


def test_which_processes_share_a_clip() -> None:
    four = [Groups(2, rank, 4) for rank in range(4)]
    assert [groups.own for groups in four] == [0, 0, 1, 1] and four[0].number == 2
    assert [groups.speaks for groups in four] == [True, False, True, False]
    rows = torch.arange(8)[:, None]  # two of each process
    assert four[0].one_each(rows).flatten().tolist() == [0, 1, 4, 5]
    assert torch.equal(Groups(1, 3, 4).one_each(rows), rows) and Groups(1, 3, 4).own == 3


def test_numbers_of_processes_that_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(PATTERN, context_parallel=2)
    with pytest.raises(ValueError, match="context_parallel=2 does not divide the 1 process; start a multiple of 2"):
        check_device(settings, cpu=True)
    check_device(settings, cpu=True, planned=True)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match=r"divide the 3 processes; .* torchrun --nproc-per-node 4"):
        check_device(settings, cpu=True)
    monkeypatch.setenv("WORLD_SIZE", "6")
    check_device(settings, cpu=True)
    with pytest.raises(ValueError, match="context_parallel=0 must be 1 or more"):
        Settings(PATTERN, context_parallel=0)


def test_models_and_sizes_that_processes_cannot_share() -> None:
    with pytest.raises(
        ValueError, match=r"context_parallel=3 does not divide the 4 heads of WanTran.*; these do: 2, 4"
    ):
        check_pipeline(pipeline(4), Settings(PATTERN, context_parallel=3))
    check_pipeline(pipeline(4), Settings(PATTERN, context_parallel=2), [ODD])
    with pytest.raises(ValueError, match=r"dropout=0\.1 with context_parallel=2 would drop the same in each part"):
        Settings(PATTERN, context_parallel=2, dropout=0.1)
    for name, size, message in (
        ("ltx2", None, "context_parallel=2 is not possible: diffusers' own plan for LTX-2 fails"),
        ("hunyuan-image-replaced", None, "context_parallel=2 is not possible: .*token_replace"),
        ("mochi", Bucket(13, 48, 48), "are 27 tokens to divide, .* multiple of context_parallel=2 for Mochi; choose"),
    ):
        case = CASES[name]
        pipe = case.pipe()
        with pytest.raises((NotImplementedError, ValueError), match=message):
            check_sharing(
                task_for(pipe), pipe.transformer, Settings(Dense(), context_parallel=2), [size or case.bucket]
            )
