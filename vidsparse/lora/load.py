"""Loads LoRAs of any trainer into pipelines, and removes them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from vidsparse.generation.frames import pipeline_geometry
from vidsparse.generation.positions import ExtendedPositions, extend_positions
from vidsparse.generation.scheduler import build_scheduler
from vidsparse.lora.attach import Changed, attach, free_name
from vidsparse.lora.base import check_base
from vidsparse.lora.files import recipe_in, require_peft, transformer_in, transformer_of
from vidsparse.lora.fitted import fit
from vidsparse.lora.proxies import proxies_of, put_proxies
from vidsparse.lora.recipe import LoraRecipe
from vidsparse.lora.source import find_lora
from vidsparse.lora.stored import Stored, read_names, read_stored
from vidsparse.runtime.pipeline import transformers_of, uncompiled
from vidsparse.runtime.proxies import remove_proxies

CONNECTORS = "connectors.", "text_embedding_projection."  # of LTX-2: what stands between its text encoder and it


@dataclass
class _Added:
    """What `load_lora` changed in a pipeline besides low-rank updates."""

    before: Any  # the scheduler before the first LoRA
    scheduler: Any = None  # the scheduler of the last one
    positions: list[ExtendedPositions] = field(default_factory=list)
    positioned: set[str] = field(default_factory=set)  # transformers whose own LoRA decided their positions
    parameters: list[Changed] = field(default_factory=list)


_added: WeakKeyDictionary[Any, _Added] = WeakKeyDictionary()


def warn(text: str) -> None:
    """Give a note as a warning of Python."""
    warnings.warn(text, stacklevel=3)


def load_lora(
    pipe: Any,
    source: str | Path,
    adapter_name: str | None = None,
    *,
    transformer: str | None = None,
    strength: float = 1.0,
    note: Callable[[str], None] = warn,
) -> LoraRecipe:
    """Load a LoRA into a pipeline, with the positions that it was trained with and the scheduler that it is for.

        recipe = vidsparse.load_lora(pipe, "shapes-long")
        with vidsparse.sparsify(pipe, recipe.pattern, correction=recipe.correction):
            video = pipe("a red circle moving left on a blue background", num_frames=recipe.frames).frames[0]

        vidsparse.unload_lora(pipe)

    Positions of a longer video go to both experts of a pipeline; a LoRA of the other expert decides for that one.

    It is active beside those that were loaded before: their updates add up. Files of other trainers load too, see
    "LoRAs" in the documentation. What a file changes outside of low-rank updates, such as norms, is changed in the
    parameters themselves; `strength` applies to it, `pipe.set_adapters` does not. Learned proxies of `ProxyTokens` come
    with the file, and neither applies to them; of all that removes LoRAs, `unload_lora` alone removes proxies.

    Args:
        pipe: a diffusers pipeline; not offloaded yet if positions, norms or biases change.
        source: "shapes-long", a folder, a safetensors file or a Hub id, of vidsparse or not.
        adapter_name: for `pipe.set_adapters`; by default "default_0", "default_1", ...
        transformer: of the pipeline: "transformer" or "transformer_2". By default the file says it, or there is but
            one.
        strength: what the LoRA adds is multiplied with this.
        note: called with a line where parts of the file have no place in the model; by default `warnings.warn`.

    Returns:
        The recipe in the file; None for what it does not say.

    Raises:
        OSError: no such name, file, folder or Hub id.
        ValueError: not a LoRA, an incomplete one, one for another model, for `shapes` one that was trained on another
            model, a second one with learned proxies, a recipe that this version of vidsparse cannot read, a file that
            leaves open which of two transformers it is for, or a model with fused projections.
        TypeError: a pipeline that loads no LoRA.
        NotImplementedError: another method than LoRA, or a pipeline whose scheduler does not take the recipe's sampler
            or shift.
        ImportError: peft is missing.
    """
    models = _models(pipe)
    require_peft()
    file = find_lora(source)
    stored = read_stored(file)
    recipe = recipe_in(file, stored.header)
    name = chosen_transformer(file, models, transformer)
    model = uncompiled(transformer_of(pipe, name))
    check_base(source, recipe.base, model.config.get("_name_or_path"))
    recipe = replace(recipe, transformer=name)
    proxies = proxies_of(file, stored.header, recipe)
    scheduler = build_scheduler(pipe.scheduler, recipe.sampler, recipe.flow_shift)
    fitted = [(place, fit(part, place, file)) for place, part in _places(pipe, model, stored)]
    for place, lora in fitted:
        if lora.left_out:
            note(f"{file}: parts without a place in {type(place).__name__} are left out: {lora.left_out_summary}")
    if stored.is_bare_peft:
        note(f"{file} does not say its alpha, and no adapter_config.json is beside it: alpha is taken to be the rank")
    adapter_name = adapter_name or free_name(models.values())
    positioned = _added[pipe].positioned if pipe in _added else set()
    with ExitStack() as undo:
        positions: list[ExtendedPositions] = []
        for each in _positioned(models, recipe, positioned):
            positions.append(extend_positions(each, *_latent_lengths(pipe, recipe), recipe.positions or "plain"))
            undo.callback(positions[-1].restore)
        if proxies:
            put_proxies(model, proxies, recipe, file)
            undo.callback(remove_proxies, model)
        changed = [x for place, lora in fitted for x in attach(pipe, place, lora, adapter_name, strength, undo)]
        undo.pop_all()
    added = _added.setdefault(pipe, _Added(pipe.scheduler))
    added.parameters += changed
    added.positions += positions
    added.positioned |= {name} if positions else set()
    pipe.scheduler = added.scheduler = scheduler
    return recipe


def unload_lora(pipe: Any) -> None:
    """Remove all LoRAs of a pipeline, with the positions, norms, biases, proxies and scheduler that they brought.

    A scheduler that was set after `load_lora` stays. Does nothing to a pipeline without LoRAs.

    Args:
        pipe: a diffusers pipeline; not offloaded if positions, norms or biases were changed.

    Raises:
        TypeError: a pipeline that loads no LoRA.
    """
    models = _models(pipe)
    if hasattr(pipe, "unload_lora_weights"):
        pipe.unload_lora_weights()
    for model in [*models.values(), getattr(pipe, "connectors", None)]:
        if getattr(model, "peft_config", None):
            model.unload_lora()
    for model in models.values():
        remove_proxies(uncompiled(model))
    added = _added.pop(pipe, None)
    if added is None:
        return
    for change in reversed(added.parameters):
        change.restore()
    for positions in reversed(added.positions):
        positions.restore()
    if pipe.scheduler is added.scheduler:
        pipe.scheduler = added.before


def chosen_transformer(file: Path, names: Sequence[str] | Mapping[str, Any], asked: str | None) -> str:
    """Which transformer of a pipeline a LoRA is for: what is asked for, else what its file says, else the only one.

    Args:
        file: of the LoRA.
        names: of the pipeline's transformers.
        asked: one of them, or None.

    Raises:
        ValueError: a name that the pipeline lacks, a file for several, or one that leaves it open.
    """
    if asked is not None:
        if asked not in names:
            raise ValueError(f"{file} is asked for in {asked!r}, which the pipeline lacks; it has {', '.join(names)}")
        return asked
    if (said := transformer_in(file, *read_names(file))) is not None:
        return said
    if len(names) == 1:
        return next(iter(names))
    forms = " or ".join(f"--lora {file}@{name}" for name in names)
    raise ValueError(
        f"{file} does not say which of {' and '.join(names)} it is for; choose with {forms}, in Python with "
        f"load_lora(pipe, source, transformer={[*names][-1]!r})"
    )


def _models(pipe: Any) -> dict[str, Any]:
    """The transformers of a pipeline. Raises TypeError where they load no LoRA."""
    found = {} if not hasattr(pipe, "scheduler") else transformers_of(pipe)
    if not found or not all(hasattr(model, "load_lora_adapter") for model in found.values()):
        kind = type(next(iter(found.values()), pipe)).__name__
        raise TypeError(f"{kind} loads no LoRA; pass a diffusers pipeline whose transformer has load_lora_adapter")
    return found


def _places(pipe: Any, model: Any, stored: Stored) -> list[tuple[Any, Stored]]:
    """The models that a file is for, each with its part of the file."""
    connectors = getattr(pipe, "connectors", None)
    if not hasattr(connectors, "load_lora_adapter"):
        return [(model, stored)]
    parts = stored.part(CONNECTORS, True), stored.part(CONNECTORS, False)
    return [(place, part) for place, part in zip((connectors, model), parts, strict=True) if part.layers]


def _positioned(models: Mapping[str, Any], recipe: LoraRecipe, decided: Collection[str]) -> list[Any]:
    """The transformers that get a LoRA's positions: its own and, unless they are plain, those without a LoRA's own."""
    if recipe.positions is None:
        return []
    asked = recipe.positions != "plain"
    return [model for name, model in models.items() if name == recipe.transformer or (asked and name not in decided)]


def _latent_lengths(pipe: Any, recipe: LoraRecipe) -> tuple[int, int]:
    """Latent frames of the videos that a LoRA was trained for, and of those that its base model was trained with."""
    known, frames, trained = pipeline_geometry(pipe), recipe.frames or 1, recipe.trained_frames or 1
    return known.frames(frames)[1], known.frames(trained)[1]
