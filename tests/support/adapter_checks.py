"""What tests of several adapters check with: gradients, bfloat16, and a pattern that notes what it is asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from vidsparse import Dense
from vidsparse.runtime.registry import adapter_for


def attentions(transformer: Any) -> Mapping[str, Any]:
    return adapter_for(transformer).self_attentions(transformer)


def assert_same_gradients(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys() and any("to_q" in name for name in found)
    # A gradient that is small because its terms cancel has the roundings of the large ones that it was made of.
    largest = max(float(wanted.abs().max()) for wanted in expected.values())
    for name, wanted in expected.items():
        atol = 1e-4 * float(wanted.abs().max()) + 1e-5 * largest + 1e-8
        torch.testing.assert_close(found[name], wanted, rtol=1e-3, atol=atol, msg=name)


def low_precision(transformer: Any) -> Any:
    """The transformer in bfloat16, but for what `from_pretrained` keeps in float32."""
    kept = transformer._keep_in_fp32_modules or []
    transformer.to(torch.bfloat16)
    for name, module in transformer.named_modules():
        if any(part in name.split(".") for part in kept):
            module.float()
    return transformer


class Spy(Dense):
    """Dense, and notes the contexts it is asked for."""

    seen: list[Any]

    def is_dense(self, context: Any) -> bool:
        self.seen.append(context)
        return True
