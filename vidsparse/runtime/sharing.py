"""Processes share each video of a transformer in training: what `enable_parallelism` divides, with right gradients.

Where diffusers puts the parts of the sequence together, its backward pass gives each process the gradient of its own
copy of the loss alone. What follows in the model would then count as often as there are processes, and what comes
before once. Here the parts get the gradients of all copies: the mean of a weight's gradient over the processes is the
gradient, wherever the weight is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from vidsparse.runtime.adapter import Adapter
from vidsparse.runtime.exchange import join_parts
from vidsparse.runtime.parallelism import divide, has_own_plan
from vidsparse.runtime.ranks import Ranks
from vidsparse.runtime.registry import adapter_for


@contextmanager
def sharing(transformer: Any, mesh: Any) -> Iterator[None]:
    """Within the context, the processes of a mesh share each video of a transformer, forward and backward.

    Tokens of a family that diffusers itself can divide need not be a multiple of their number.

    Args:
        transformer: sparsified, and throughout. Its adapter has a plan, and the processes divide its heads.
        mesh: a `DeviceMesh` with the dimensions "ring", of size 1, and "ulysses", and maybe others.
    """
    from diffusers.hooks.context_parallel import remove_context_parallel

    adapter: Adapter = adapter_for(transformer)
    plan = adapter.parallel_plan(transformer)
    inputs: Any = {name: what for name, what in plan.items() if isinstance(what, Mapping)}
    with ExitStack() as changes:
        changes.callback(_forget, transformer)
        changes.callback(remove_context_parallel, transformer, inputs)
        own = has_own_plan(transformer, plan)
        divide(transformer, adapter, inputs, mesh["ulysses"].size(), own, uneven=own, mesh=mesh)

        def join(module: torch.nn.Module, args: Any, out: Any) -> Any:
            """Of several outputs the first is the video; the others are whole already."""
            if isinstance(out, torch.Tensor):
                return _joined(transformer, adapter, out)
            return (_joined(transformer, adapter, out[0]), *out[1:])

        for name in plan.keys() - inputs.keys():
            changes.callback(transformer.get_submodule(name).register_forward_hook(join).remove)
        yield


def _joined(transformer: Any, adapter: Adapter, part: torch.Tensor) -> torch.Tensor:
    """All tokens [batch, tokens, width] in every process, of those that each has."""
    ranks = Ranks.of(transformer, adapter)
    assert ranks is not None
    first: Any = next(iter(adapter.self_attentions(transformer).values()))
    grid = first.processor.layer.grid
    shares = ranks.shares(grid.tokens - sum(adapter.ends(grid)))
    return join_parts(part.transpose(0, 1), shares, ranks.group).transpose(0, 1)


def _forget(transformer: Any) -> None:
    """Let a transformer and its processors know of no other processes."""
    transformer._parallel_config = None
    for module in transformer.modules():
        if hasattr(getattr(module, "processor", None), "_parallel_config"):
            module.processor._parallel_config = None
