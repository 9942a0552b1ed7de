"""Methods that are called instead of traced, and when they become so."""

from __future__ import annotations

import torch

from vidsparse.runtime.untraced import disable_tracing, untraced


class Counter:
    def __init__(self) -> None:
        self.calls = 0

    @untraced
    def count(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += not torch.compiler.is_compiling()
        return x + 1


def test_a_method_works_before_and_is_untraced_after() -> None:
    counter = Counter()
    assert counter.count(torch.zeros(1)).item() == 1 and "disable" not in repr(vars(Counter)["count"])
    disable_tracing()
    disable_tracing()
    assert getattr(vars(Counter)["count"], "_torchdynamo_disable", False)
    compiled = torch.compile(lambda x: counter.count(2 * x), backend="eager")
    for _ in range(3):
        assert compiled(torch.ones(1)).item() == 3
    assert counter.calls == 4  # each time, though the graph is made once
    torch.compiler.reset()
