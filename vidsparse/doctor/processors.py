"""Checks of the processors that `sparsify` puts in, for steps that stay dense and after it."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import zip_longest
from typing import Any

from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend

from vidsparse.doctor.agree import Failed, NotApplicable, same
from vidsparse.doctor.twin import Twin
from vidsparse.doctor.under_mask import SPARSE
from vidsparse.patterns import Dense
from vidsparse.runtime.sparsify import sparsify


def dense_is_the_model(twin: Twin) -> str:
    """Check that a dense step equals the model itself, bit for bit."""
    model = twin.build()
    expected = twin.outputs(model)
    with sparsify(model, Dense(), strict=True) as run:
        same(twin.outputs(model), expected)
    return f"bit for bit, {len(run.report().calls)} layers"


def modules_run_in_their_order(twin: Twin) -> str:
    """Check that a sparse call runs the same modules as a dense one, in the same order.

    Group offloading with streams notes the order of the first call, and fetches the weights of the next module ahead.
    """
    model = twin.build()
    expected = _modules_run(twin, model)
    with sparsify(model, SPARSE, strict=True):
        found = _modules_run(twin, model)
    for place, (ours, own) in enumerate(zip_longest(found, expected, fillvalue="none")):
        if ours != own:
            raise Failed(f"module {place} that runs is {ours} in a sparse call, {own} in a dense one")
    return f"{len(expected)} modules"


def _modules_run(twin: Twin, model: Any) -> list[str]:
    """The names of modules without others inside, in the order in which a call runs them."""
    names: list[str] = []
    with ExitStack() as undo:
        for name, module in model.named_modules():
            if not any(module.children()):
                hook = module.register_forward_pre_hook(lambda *_, name=name: names.append(name))
                undo.callback(hook.remove)
        twin.outputs(model)
    return names


def restore_puts_back_the_very_objects(twin: Twin) -> str:
    """Check that `restore` puts back the same processor objects and leaves no hook."""
    model = twin.build()
    expected, before = twin.outputs(model), _processors(model)
    with sparsify(model, SPARSE):
        twin.outputs(model)
    for name, processor in _processors(model).items():
        if processor is not before[name]:
            raise Failed(f"{name} has {processor}, but had {before[name]}")
    if hooks := len(model._forward_pre_hooks) + len(model._forward_hooks):
        raise Failed(f"{hooks} hooks are left")
    same(twin.outputs(model), expected)
    return f"{len(before)} processors"


def _processors(model: Any) -> dict[str, Any]:
    return {name: module.processor for name, module in model.named_modules() if hasattr(module, "processor")}


def backend_reaches_dense_steps(twin: Twin) -> str:
    """Check that dense steps use the attention backend that a user set before or after `sparsify`."""
    model, backend = twin.build(), AttentionBackendName._NATIVE_MATH
    attentions: Any = twin.adapter.self_attentions(model).values()
    originals = [attention.processor for attention in attentions]
    if not all(hasattr(original, "_attention_backend") for original in originals):
        raise NotApplicable(f"diffusers gives {type(originals[0]).__name__} no attention backend")
    with attention_backend("native"):  # restores what set_attention_backend sets for all models
        try:
            expected = twin.outputs(_with_backend(twin.build(), backend))
        except ValueError as error:  # only the model's own code has run
            raise NotApplicable(f"without vidsparse too: {error}") from error
        with sparsify(model, Dense(), strict=True):
            same(twin.outputs(_with_backend(model, backend)), expected)
        if not all(original._attention_backend == backend for original in originals):
            raise Failed(f"{backend.value} was set after sparsify and did not reach the model's own processors")
        with sparsify(model, Dense(), strict=True):
            same(twin.outputs(model), expected)
    return "bit for bit"


def _with_backend(model: Any, backend: AttentionBackendName) -> Any:
    model.set_attention_backend(backend.value)
    return model
