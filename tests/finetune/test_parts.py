"""Parts of the LoRA training that need no model: settings, noise levels, batches, checkpoints."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from vidsparse import Context, HeadModes, Radial, Reshaped, Reuse, StepSchedule
from vidsparse.finetune import checkpoint
from vidsparse.finetune.noise import by_noise, draw_levels, shift_of, sparse_levels
from vidsparse.finetune.objective import Example, ExampleStream, flow_loss
from vidsparse.finetune.settings import Settings

SPARSE = Radial(density=0.3)


def unipc(shift: float = 3.0) -> UniPCMultistepScheduler:
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)


# Settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, r"rank=0 must be 1 or more"),
        ({"rank": -4}, r"rank=-4 must be 1 or more"),
        ({"batch": 0}, r"batch=0"),
        ({"learning_rate": 0.0}, r"learning_rate=0\.0 must be above 0"),
        ({"alpha": 0}, r"alpha=0 must be above 0"),
        ({"learning_rate": float("nan")}, r"learning_rate=nan"),
        ({"ema": 1.0}, r"ema=1\.0 must be in \[0, 1\)"),
        ({"caption_dropout": -0.1}, r"caption_dropout=-0\.1"),
        ({"targets": ()}, r"targets is empty"),
        ({"precision": "int8"}, r"precision='int8' is unknown; choose one of no, bf16, fp16"),
        ({"positions": "ntk"}, r"positions='ntk' is unknown; choose one of plain, riflex"),
        ({"positions": "riflex"}, r"positions='riflex' needs trained_frames"),
        ({"correction": Reshaped()}, r"Reshaped\(.*needs consecutive denoising steps, which training does not have"),
        ({"decay": 1.5}, r"decay=1\.5 must be in \[0, 1\]"),
        ({"sample_every": 5}, r"sample_every=5 needs sample_prompts"),
    ],
)
def test_bad_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(SPARSE, **changes)


def test_the_rate_rises_stays_and_falls() -> None:
    settings = Settings(SPARSE, steps=10, warmup=2, decay=0.4, learning_rate=1.0)
    assert [settings.rate(step) for step in range(10)] == [0.5, *[1.0] * 6, 0.75, 0.5, 0.25]
    assert Settings(SPARSE, steps=10, warmup=0, learning_rate=1.0).rate(9) == 1.0


def test_a_pattern_must_be_one() -> None:
    with pytest.raises(TypeError, match="must be a pattern"):
        Settings("radial")  # type: ignore[arg-type]


def test_targets_that_do_not_exist_are_named_with_those_that_do() -> None:
    class Attention(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.to_q, self.to_out = torch.nn.Linear(2, 2), torch.nn.ModuleList([torch.nn.Linear(2, 2)])

    model = torch.nn.ModuleDict({"attn": Attention()})
    Settings(SPARSE, targets=("to_q", "to_out.0")).check_targets(model)
    with pytest.raises(ValueError, match=r"targets to_z, q do not exist; choose from to_out\.0, to_q"):
        Settings(SPARSE, targets=("to_z", "to_q", "q")).check_targets(model)


# Noise levels


# Near 0 a step of 1/1000 is widened by the shift; Euler's scheduler applies the shift to its last level once more.
@pytest.mark.parametrize(
    ("scheduler", "tolerance"),
    [(unipc(3.0), 3e-3), (FlowMatchEulerDiscreteScheduler(shift=3.0), 9e-3)],
    ids=["unipc", "euler"],
)
def test_levels_are_spaced_as_those_of_the_scheduler(scheduler: Any, tolerance: float) -> None:
    assert shift_of(scheduler) == 3.0
    scheduler.set_timesteps(1000)
    expected = draw_levels(torch.linspace(1, 1e-3, 1000), 3.0)
    torch.testing.assert_close(scheduler.timesteps.float() / 1000, expected, rtol=0, atol=tolerance)


def test_levels_of_an_expert_stay_on_its_side_and_fill_it() -> None:
    uniform = torch.linspace(0, 1, 1001)
    for bounds in ((0.0, 1.0), (0.875, 1.0), (0.0, 0.875)):
        levels = draw_levels(uniform, 5.0, bounds)
        torch.testing.assert_close(torch.stack((levels[0], levels[-1])), torch.tensor(bounds), rtol=0, atol=1e-6)
        assert (levels.diff() > 0).all()


@pytest.mark.parametrize("scheduler", [DDIMScheduler(), FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)])
def test_schedulers_of_another_kind_are_refused(scheduler: Any) -> None:
    with pytest.raises(NotImplementedError, match=f"{type(scheduler).__name__} cannot be used for training"):
        shift_of(scheduler)


@pytest.mark.parametrize(
    "schedule",
    [
        StepSchedule(SPARSE, dense_steps=4),
        StepSchedule(SPARSE, dense_steps=4, dense_last_steps=2, dense_layers=(0,)),
        StepSchedule(SPARSE, dense_last_steps=1),
        StepSchedule(SPARSE, steps=(3, 9)),
        StepSchedule(SPARSE, dense_steps=2, sigmas=(0.2, 0.9)),
        StepSchedule(SPARSE, sigmas=(0.2, 0.9)),
    ],
    ids=["first", "first-last-layer", "last", "range", "first-and-sigmas", "sigmas"],
)
def test_a_schedule_by_noise_is_sparse_where_the_generation_is(schedule: StepSchedule) -> None:
    scheduler, steps = unipc(), 20
    found = by_noise(schedule, scheduler, steps)
    scheduler.set_timesteps(steps)
    for step, timestep in enumerate(scheduler.timesteps.tolist()):
        for layer in range(2):
            here = Context(step=step, steps=steps, sigma=timestep / 1000, layer=layer, layers=2)
            drawn = Context(step=0, steps=0, sigma=timestep / 1000, layer=layer, layers=2)
            assert found.is_dense(drawn) == schedule.is_dense(here), (step, layer)


@pytest.mark.parametrize(
    "table",
    [((("full", "full"), ("diagonal", "temporal")),), ((("full",), ("full",)), (("diagonal",), ("full",)))],
    ids=["first-layer-full", "noisiest-phase-full"],
)
def test_a_schedule_around_modes_that_are_full_somewhere(table: Any) -> None:
    """What the pattern runs dense by itself says nothing of the steps that the schedule leaves sparse."""
    scheduler, modes = unipc(), HeadModes(table)
    found = by_noise(StepSchedule(modes, dense_steps=2), scheduler, 30)
    assert isinstance(found, StepSchedule) and found.pattern is modes
    assert found.sigmas == by_noise(StepSchedule(SPARSE, dense_steps=2), scheduler, 30).sigmas


def test_other_patterns_and_the_scheduler_stay_as_they_are() -> None:
    scheduler = unipc()
    assert by_noise(SPARSE, scheduler, 20) is SPARSE
    by_noise(StepSchedule(SPARSE, dense_steps=4), scheduler, 20)
    assert scheduler.num_inference_steps is None
    with pytest.raises(ValueError, match=r"Reuse\(pattern=StepSchedule\(\.\.\.\)\) has its schedule inside"):
        by_noise(Reuse(StepSchedule(SPARSE, dense_steps=4)), scheduler, 20)
    with pytest.raises(ValueError, match="has no sparse step among 4"):
        by_noise(StepSchedule(SPARSE, dense_steps=4), scheduler, 4)


# Examples


class Examples:
    """Five videos of two sizes; each holds its number."""

    def __init__(self) -> None:
        self.empty_text = torch.full((2, 3), -1.0)

    def __len__(self) -> int:
        return 5

    def latents(self, index: int) -> torch.Tensor:
        return torch.full((2, 3, 4, 4 if index < 3 else 6), float(index))

    def text(self, index: int) -> torch.Tensor:
        return torch.full((2, 3), float(index))


def sampler(**changes: Any) -> ExampleStream:
    settings = dict(batch=1, rank=0, world=1, shift=3.0, bounds=(0.0, 1.0), caption_dropout=0.0, seed=7)
    return ExampleStream(Examples(), **(settings | changes))  # type: ignore[arg-type]


def same(a: Example, b: Example) -> bool:
    return all(map(torch.equal, vars(a).values(), vars(b).values()))


def test_processes_draw_what_one_draws_with_a_larger_batch() -> None:
    for step in range(8):
        alone = [sampler(batch=4).draw(step, part) for part in range(4)]
        shared = [sampler(batch=2, world=2, rank=r).draw(step, part) for part in range(2) for r in range(2)]
        assert all(map(same, alone, shared))


def test_what_a_step_draws_does_not_depend_on_what_was_drawn_before() -> None:
    torch.manual_seed(0)
    first = [sampler().draw(step, 0) for step in range(3)]
    torch.manual_seed(1)
    assert same(first[2], sampler().draw(2, 0))
    other = sampler(seed=8).draw(2, 0)
    assert first[2].noise.shape != other.noise.shape or not torch.equal(first[2].noise, other.noise)


def test_a_step_has_no_video_twice_and_levels_that_cover_the_range() -> None:
    seen = set()
    for step in range(40):
        parts = [sampler(batch=4).draw(step, part) for part in range(4)]
        videos = [float(example.latents.mean()) for example in parts]
        assert len(set(videos)) == 4 and [float(example.text.mean()) for example in parts] == videos
        seen |= set(videos)
        levels = torch.cat([example.level for example in parts])
        uniform = levels / (3 - 2 * levels)  # the shift undone: one in each quarter
        assert (uniform * 4).floor().tolist() == [0, 1, 2, 3]
    assert seen == {0, 1, 2, 3, 4}
    assert len([sampler(batch=9).draw(0, part) for part in range(9)]) == 9  # more than there are


def test_a_step_is_dense_or_sparse_in_all_processes() -> None:
    """Sparse from 0.2 to 0.9 of the noise: with the shift undone, from 1/13 to 3/4."""
    drawn, dense = [], 0
    for step in range(600):
        levels = torch.cat([sampler(batch=4, sparse=(0.2, 0.9)).draw(step, part).level for part in range(4)])
        here = ((levels > 0.2) & (levels <= 0.9)).tolist()
        assert len(set(here)) == 1
        dense += not here[0]
        drawn.append(levels / (3 - 2 * levels))
    uniform = torch.cat(drawn).sort().values
    share = 1 - (3 / 4 - 1 / 13)
    assert abs(dense / 600 - share) < 4 * math.sqrt(share * (1 - share) / 600)
    # All levels together are spread as without sides; 600 independent steps bound the distance.
    assert (uniform - torch.linspace(0, 1, len(uniform))).abs().max() < 2 / math.sqrt(600)


def test_the_sparse_levels_of_a_schedule() -> None:
    assert sparse_levels(SPARSE) == (0.0, 1.0)
    low, high = sparse_levels(by_noise(StepSchedule(SPARSE, dense_steps=4, dense_last_steps=2), unipc(), 20))
    scheduler = unipc()
    scheduler.set_timesteps(20)
    levels = [t / 1000 for t in scheduler.timesteps.tolist()]
    assert [low < level <= high for level in levels] == [False] * 4 + [True] * 14 + [False] * 2
    assert sparse_levels(StepSchedule(StepSchedule(SPARSE, sigmas=(0.1, 0.8)), sigmas=(0.3, 0.9))) == (0.3, 0.8)


def test_some_captions_are_dropped() -> None:
    drawn = sampler(caption_dropout=0.5)
    dropped = [bool((drawn.draw(step, 0).text == -1).all()) for step in range(200)]
    assert 70 < sum(dropped) < 130


def test_the_loss_is_that_of_the_flow() -> None:
    example = sampler().draw(0, 0)

    def perfect(noisy: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor, return_dict: bool) -> Any:
        torch.testing.assert_close(timestep, 1000 * example.level)
        # From noisy = (1 - s) x + s n and x: n - x = (noisy - x) / s.
        return ((noisy - example.latents) / example.level,)

    assert flow_loss(perfect, example) < 1e-10
    nothing = flow_loss(lambda noisy, *_, **__: (torch.zeros_like(noisy),), example)
    torch.testing.assert_close(nothing, (example.noise - example.latents).square().mean())


# Checkpoints


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
