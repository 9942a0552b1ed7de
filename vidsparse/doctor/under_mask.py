"""Checks that a sparse model computes attention under the mask of its pattern."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from vidsparse.doctor import changes
from vidsparse.doctor.agree import Failed, NotApplicable, Results, agree, agreed
from vidsparse.doctor.masked import masked
from vidsparse.doctor.twin import VIEW, Twin, View
from vidsparse.patterns import Pattern, Radial, SlidingTile
from vidsparse.runtime.sparsify import sparsify

SPARSE = Radial(density=0.3, tile=(1, 2, 4))
KEEPS_ALL = SlidingTile(window=(99, 99, 99))


@dataclass(frozen=True)
class Agrees:
    """Check that a sparse model equals the model under the expanded mask, with `change` before or after `sparsify`.

    With `KEEPS_ALL`, it is the model as it is.
    """

    pattern: Pattern = SPARSE
    view: View = VIEW
    batch: int = 1
    dtype: torch.dtype = torch.float32
    measure: Callable[..., Results] = Twin.outputs
    change: Callable[[Any, torch.dtype], object] = changes.nothing

    def __call__(self, twin: Twin) -> str:
        bare = self.bare(twin)
        plain, exact = self.own(twin, self.dtype), self.own(twin, torch.float64)
        if self.pattern is not KEEPS_ALL and agreed(bare, plain, exact, self.dtype):
            raise Failed("the mask changes nothing in this twin, so that the check shows nothing")
        texts: list[str] = []
        for after in (False,) if self.change is changes.nothing else (False, True):
            model = twin.build(self.dtype)
            if not after:
                self.change(model, self.dtype)
            with sparsify(model, self.pattern, strict=True) as run:
                if after:
                    self.change(model, self.dtype)
                found = self.measure(twin, model, self.view, self.batch, self.dtype)
                lost = run.report().lost
            if lost and after:  # the report names the change and the remedy
                return f"{texts[0]}; before sparsify only: {'; '.join(lost)}"
            if lost:
                raise Failed(f"not sparse: {'; '.join(lost)}")
            texts.append(agree(found, plain, exact, self.dtype))
        return texts[-1]

    def own(self, twin: Twin, dtype: torch.dtype) -> Results:
        """The output of the unmodified model in a dtype."""
        model, grids = twin.build(dtype), (twin.grid(self.view, self.batch), twin.key_grid(self.view, self.batch))
        self.change(model, dtype)
        with nullcontext() if self.pattern is KEEPS_ALL else masked(model, self.pattern, *grids):
            return self.measure(twin, model, self.view, self.batch, dtype)

    def bare(self, twin: Twin) -> Results:
        """The output of the unmodified model without a mask.

        Raises:
            NotApplicable: it cannot, with diffusers' own reason.
        """
        model = twin.build(self.dtype)
        try:
            twin.arguments(model, self.view, self.batch)
        except NotImplementedError as error:
            raise NotApplicable(str(error)) from error
        try:
            self.change(model, self.dtype)
            return self.measure(twin, model, self.view, self.batch, self.dtype)
        except Exception as error:  # any error: only the model's own code has run
            if self.change is changes.nothing and self.dtype == torch.float32 and self.measure is Twin.outputs:
                raise  # the twin itself is wrong
            raise NotApplicable(f"without vidsparse too: {type(error).__name__}: {error}") from error
