"""The order of the videos: every one in each epoch, none twice in a step."""

from __future__ import annotations

import pytest

from vidsparse.finetune.draws.order import Epochs


@pytest.mark.parametrize(("number", "total"), [(7, 1), (7, 3), (7, 5), (8, 4), (50, 6), (3, 7), (1, 1)])
def test_each_epoch_has_each_video_once(number: int, total: int) -> None:
    epochs, steps = Epochs(number, 3, total), 5 * number
    drawn = [video for step in range(steps) for video in epochs.chosen(step)]
    for epoch in range(steps * total // number):
        assert sorted(drawn[epoch * number : (epoch + 1) * number]) == list(range(number))
    if number >= total:
        assert all(len(set(epochs.chosen(step))) == total for step in range(steps))


def test_a_step_does_not_depend_on_what_was_asked_before() -> None:
    whole = Epochs(7, 0, 3)
    steps = [whole.chosen(step) for step in range(40)]
    assert [Epochs(7, 0, 3).chosen(step) for step in range(40)] == steps
    assert [whole.chosen(step) for step in reversed(range(40))] == steps[::-1]
    assert [Epochs(7, 1, 3).chosen(step) for step in range(40)] != steps
    assert steps[:3] != steps[7:10], "each epoch has an order of its own"
