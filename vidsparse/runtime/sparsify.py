"""Puts a pattern into a diffusers pipeline or transformer."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch

from vidsparse.attention import check_impl
from vidsparse.corrections import Correction
from vidsparse.patterns import FreeSwim, Pattern, TemporalBias
from vidsparse.patterns.base import patterns_in
from vidsparse.runtime.adapter import Adapter
from vidsparse.runtime.call import SparsityOptions
from vidsparse.runtime.clock import Clock
from vidsparse.runtime.full_branch import FullBranch
from vidsparse.runtime.guiders import introduce
from vidsparse.runtime.layer import Layer
from vidsparse.runtime.learned_gates import check_gates
from vidsparse.runtime.offloading import computing_device
from vidsparse.runtime.pipeline import TRANSFORMERS, compiled_of, transformers_of
from vidsparse.runtime.proxies import check_proxies
from vidsparse.runtime.ranks import Ranks
from vidsparse.runtime.recommended import preset_for
from vidsparse.runtime.registry import adapter_for
from vidsparse.runtime.run import Replaced, Run, set_processor
from vidsparse.runtime.skip import StepSkip, refuse_cache
from vidsparse.runtime.untraced import disable_tracing


def sparsify(
    pipe_or_transformer: object,
    pattern: Pattern | None = None,
    *,
    correction: Correction | None = None,
    impl: str = "auto",
    strict: bool = False,
    min_tokens: int = 0,
) -> Run:
    """Make the video self-attention of a pipeline or transformer sparse, at once.

        run = vidsparse.sparsify(pipe, Radial(density=0.2))
        video = pipe("a red circle moving left on a blue background").frames[0]
        print(run.report())
        run.restore()

    Attention modules whose processor is not the family's own (a subclass, IP-Adapter) run dense, and the report says
    so; see `vidsparse.runtime.adapter.Adapter.wrap` for how such a processor can be sparse.

    Training works too. With gradient checkpointing each forward pass needs its backward pass before the next forward:
    what is recomputed takes noise level and grid from the last call, and so the map.

    Several GPUs can share a video, see `enable_parallelism`, which may come before this call or after it.

    Args:
        pipe_or_transformer: a diffusers pipeline (its `transformer`, and `transformer_2` or `transformer_ref` where it
            has one) or a transformer of a supported class.
        pattern: which key tiles each query tile sees; wrap it in `StepSchedule` to keep the first steps dense. None:
            pattern and correction of the model's preset, see `preset_for`.
        correction: what is added back for dropped tiles, such as `PooledComplement()`; None adds nothing.
        impl: implementation of the attention, see `sparse_attention`.
        strict: raise where a layer cannot be sparse, instead of running it dense and saying so in the report.
        min_tokens: run dense below this many tokens.

    Returns:
        The run: `report()`, `reset()`, `restore()`; as a context manager it restores on exit, also after Ctrl-C. Who
        does not keep it can use `vidsparse.report` and `vidsparse.restore`.

    Raises:
        TypeError: not a pattern, something that has no transformer, or a value of the wrong type.
        NotImplementedError: a transformer that no adapter serves, `FreeSwim` where the adapter knows no
            cross-attention, a pattern or a correction that cannot choose among kept frames where the model keeps
            them, `impl="triton"` without a CUDA device, context parallelism in a ring, or with `strict` a
            processor that is not the family's own.
        ValueError: already sparsified; an unknown `impl`; a negative `min_tokens`; a `TemporalBias` inside a pattern.
    """
    if pattern is None:
        recommended = preset_for(pipe_or_transformer)
        pattern, correction = recommended.pattern, correction or recommended.correction
    options = _options(pattern, correction, impl, strict, min_tokens)
    targets = transformers_of(pipe_or_transformer)
    check_proxies(options.correction, targets)
    run = Run(options, _weakly(pipe_or_transformer))
    try:
        found = [new for name, t in targets.items() for new in _replacements(run, t, name).values()]
        for name, wrapper in compiled_of(pipe_or_transformer).items():
            run.clocks[name].watch(wrapper)
        for attention in found:
            run.replaced.append(attention)
            set_processor(attention.module, attention.ours)
    except BaseException:
        run.restore()
        raise
    return run


def attn_processors(
    transformer: torch.nn.Module,
    pattern: Pattern,
    *,
    correction: Correction | None = None,
    impl: str = "auto",
    strict: bool = False,
    min_tokens: int = 0,
) -> dict[str, Any]:
    """Sparse processors for `transformer.set_attn_processor(...)`, the diffusers way.

    The dict holds a processor for every attention of the transformer: sparse ones for video self-attention, the present
    ones elsewhere. Setting the earlier `transformer.attn_processors` puts everything back, and so does
    `vidsparse.restore`; `vidsparse.report` reports what ran.

    Args:
        transformer: of a supported class.
        pattern, correction, impl, strict, min_tokens: as for `sparsify`.

    Raises:
        TypeError, ValueError, NotImplementedError: as `sparsify`.
    """
    options = _options(pattern, correction, impl, strict, min_tokens)
    adapter_for(transformer)
    if not hasattr(transformer, "attn_processors"):
        name = type(transformer).__name__
        raise NotImplementedError(f"{name} has no attn_processors in this diffusers; use vidsparse.sparsify instead")
    check_proxies(options.correction, {TRANSFORMERS[0]: transformer})
    run = Run(options, _weakly(transformer))
    ours = _replacements(run, transformer, TRANSFORMERS[0])
    present: dict[str, Any] = dict(transformer.attn_processors)  # type: ignore[arg-type]
    return present | {f"{name}.processor": attention.ours for name, attention in ours.items()}


def _replacements(run: Run, transformer: torch.nn.Module, name: str) -> dict[str, Replaced]:
    """Attention module name -> its processor and ours, for one transformer; sets none."""
    adapter, options = adapter_for(transformer), run.options
    device = computing_device(transformer)
    # Weights that are offloaded rest on a CPU; where they compute, the first call checks again.
    check_impl(options.impl, torch.device("cuda") if options.impl == "triton" and torch.cuda.is_available() else device)
    Ranks.of(transformer, adapter)  # refuses a ring
    attentions = adapter.self_attentions(transformer)
    for heads in {adapter.heads(module) for module in attentions.values()}:
        options.pattern.check_model(len(attentions), heads)
    check_gates(options.pattern, transformer, name, alone=run.pipeline() is None)
    _check_processors(attentions, name, adapter, options.strict)
    if adapter.two_grids:
        _check_two_grids(adapter, options)
    disable_tracing()
    clock = run.clocks[name] = Clock(transformer, adapter, run.pipeline)
    clock.run = weakref.ref(run)
    if name == TRANSFORMERS[1] and TRANSFORMERS[0] in run.clocks:
        clock.earlier = weakref.ref(run.clocks[TRANSFORMERS[0]])
    swimming = [inner for inner in patterns_in(options.pattern) if isinstance(inner, FreeSwim)]
    if len(swimming) > 1:
        raise ValueError(f"the pattern holds {len(swimming)} FreeSwims, each with a pass of its own; keep one")
    for inner in swimming:
        crossing = tuple(adapter.cross_attentions(transformer))
        FullBranch(transformer, clock, inner, options.pattern, name, crossing, len(attentions))
    if any(inner.may_skip for inner in patterns_in(options.pattern)):
        refuse_cache(transformer, name)
        StepSkip(transformer, clock, options.pattern, name)
    run.transformers[name] = weakref.ref(transformer)
    replaced = {}
    for index, (key, module) in enumerate(attentions.items()):
        original: Any = module.processor
        layer = Layer(options, run.log, clock, name, index, len(attentions), adapter.attention_width(module))
        layer.original = original
        replaced[key] = Replaced(module, original, adapter.wrap(original, layer))
    clock.substitutes.append(introduce(transformer, adapter, [attention.ours for attention in replaced.values()]))
    return replaced


def _check_two_grids(adapter: Adapter, options: SparsityOptions) -> None:
    if options.correction is not None:
        raise NotImplementedError(
            f"correction={options.correction!r} is for queries and keys of the same tokens, but {adapter.family} keeps "
            "keys of earlier frames; give no correction"
        )
    refused = [inner for inner in patterns_in(options.pattern) if not inner.two_grids]
    if refused:
        raise NotImplementedError(
            f"{refused[0]!r} chooses among the tokens of its queries alone, but {adapter.family} keeps keys of earlier "
            "frames; take LightForcing(), or a pattern of shapes alone such as Radial(density=0.3)"
        )


def _check_processors(attentions: dict[str, torch.nn.Module], name: str, adapter: Adapter, strict: bool) -> None:
    for key, module in attentions.items():
        original: Any = module.processor
        if isinstance(getattr(original, "layer", None), Layer):
            raise ValueError(f"{name} is already sparsified; restore the earlier run, or set the earlier processors")
        if strict and (reason := adapter.unknown(original)) is not None:
            raise NotImplementedError(f"{name} {key} cannot be sparse: {reason} (strict=True)")


def _options(
    pattern: Pattern, correction: Correction | None, impl: str, strict: bool, min_tokens: int
) -> SparsityOptions:
    if not isinstance(pattern, Pattern):
        raise TypeError(f"pattern must be a pattern, such as vidsparse.Radial(density=0.2), not {_named(pattern)}")
    if any(isinstance(inner, TemporalBias) and inner is not pattern for inner in patterns_in(pattern)):
        raise ValueError(
            f"{type(pattern).__name__} holds a TemporalBias, which must be outermost: put the {type(pattern).__name__} "
            "into it, and limit it to layers and noise levels with its own fields"
        )
    if correction is not None and not isinstance(correction, Correction):
        raise TypeError(f"correction must be a correction or None, not {_named(correction)}")
    if not isinstance(strict, bool):
        raise TypeError(f"strict must be True or False, not {strict!r}")
    if not isinstance(min_tokens, int) or isinstance(min_tokens, bool):
        raise TypeError(f"min_tokens must be a whole number of tokens, not {min_tokens!r}")
    if min_tokens < 0:
        raise ValueError(f"min_tokens={min_tokens} must be at least 0")
    return SparsityOptions(pattern, correction, impl, strict, min_tokens)


def _named(value: object) -> str:
    """A value in an error: plain data as it is, else its class, since pipelines print their whole configuration."""
    if isinstance(value, (str, int, float)) or value is None:
        return repr(value)
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"


def _weakly(target: object) -> Callable[[], object | None]:
    # A run keeps no pipeline alive; a transformer alone has none.
    return (lambda: None) if isinstance(target, torch.nn.Module) else weakref.ref(target)
