"""Learning rates by the names of diffusers."""

from __future__ import annotations

import pytest
import torch
from diffusers.optimization import get_scheduler

from vidsparse.finetune.optim.rates import FALLING, RateSchedule


@pytest.mark.parametrize("kind", FALLING)
def test_after_the_warm_up_they_are_those_of_diffusers(kind: str) -> None:
    own = RateSchedule(kind, steps=40, warmup=5, cycles=3, power=2.0)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_scheduler(kind, optimizer, num_warmup_steps=5, num_training_steps=40, num_cycles=3, power=2.0)
    for step in range(40):
        expected = (step + 1) / 5 if step < 5 else theirs.get_last_lr()[0]
        assert own.factor(step) == pytest.approx(expected, abs=1e-9)
        optimizer.step()
        theirs.step()
    assert own.needs_steps


def test_constant_rates() -> None:
    assert [RateSchedule("constant", 4, warmup=2).factor(step) for step in range(4)] == [1.0] * 4
    warm = RateSchedule("constant_with_warmup", 10, warmup=2, decay=0.4)
    assert [warm.factor(step) for step in range(10)] == [0.5, *[1.0] * 6, 0.75, 0.5, 0.25]
    assert warm.needs_steps and not RateSchedule("constant", 4).needs_steps


@pytest.mark.parametrize(
    ("changes", "message"), [({"cycles": 0}, "lr_num_cycles=0"), ({"power": 0.0}, r"lr_power=0\.0")]
)
def test_bad_numbers(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RateSchedule("polynomial", 10, **changes)  # type: ignore[arg-type]
