"""The examples of a step and the loss: the same for any number of processes."""

from __future__ import annotations

import math
from typing import Any

import torch

from vidsparse.finetune.families.task import MAIN
from vidsparse.finetune.objective import Example, ExampleStream, flow_loss


class Examples:
    """Five videos of two sizes; each holds its number."""

    def __len__(self) -> int:
        return 5

    def video(self, index: int) -> dict[str, torch.Tensor]:
        return {MAIN: torch.full((2, 3, 4, 4 if index < 3 else 6), float(index))}

    def caption(self, index: int) -> dict[str, torch.Tensor]:
        return {MAIN: torch.full((2, 3), float(index)), "mask": torch.full((2,), float(index))}

    def no_caption(self, index: int) -> dict[str, torch.Tensor]:
        del index
        return self.caption(-1)


def sampler(**changes: Any) -> ExampleStream:
    settings = dict(batch=1, rank=0, world=1, shift=3.0, bounds=(0.0, 1.0), caption_dropout=0.0, seed=7)
    return ExampleStream(Examples(), **(settings | changes))  # type: ignore[arg-type]


def same(a: Example, b: Example) -> bool:
    tensors = [(x.latents, x.noise, x.text, x.level) for x in (a, b)]
    return (
        all(map(torch.equal, *tensors))
        and a.more.keys() == b.more.keys()
        and all(torch.equal(a.more[name], b.more[name]) for name in a.more)
    )


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


def test_some_captions_are_dropped() -> None:
    drawn = sampler(caption_dropout=0.5)
    dropped = [bool((drawn.draw(step, 0).text == -1).all()) for step in range(200)]
    assert 70 < sum(dropped) < 130


def test_the_loss_is_that_of_the_flow() -> None:
    example = sampler().draw(0, 0)

    def perfect(hidden_states: torch.Tensor, timestep: torch.Tensor, **others: Any) -> Any:
        torch.testing.assert_close(timestep, 1000 * example.level)
        # From noisy = (1 - s) x + s n and x: n - x = (noisy - x) / s.
        return ((hidden_states - example.latents) / example.level,)

    assert flow_loss(perfect, example) < 1e-10
    nothing = flow_loss(lambda hidden_states, **_: (torch.zeros_like(hidden_states),), example)
    torch.testing.assert_close(nothing, (example.noise - example.latents).square().mean())
