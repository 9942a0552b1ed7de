"""Puts a fitted LoRA into a model: low-rank updates through peft, differences into the parameters themselves."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from vidsparse.lora.before import Before
from vidsparse.lora.fitted import layers_of, parameter_name, parameters_of
from vidsparse.lora.renamed import LowRank, Renamed


@dataclass(frozen=True)
class Changed:
    """A parameter that a LoRA changed.

    Attributes:
        parameter: of the model. before: its values without the LoRA.
    """

    parameter: torch.nn.Parameter
    before: torch.Tensor

    def restore(self) -> None:
        """Give the parameter its very values back, on whatever device it is now."""
        with torch.no_grad():
            self.parameter.copy_(self.before)


def attach(pipe: Any, model: Any, lora: Renamed, name: str, strength: float, undo: ExitStack) -> list[Changed]:
    """Put a LoRA into a model, active beside those that are active there.

    Args:
        pipe: that has the model; its offloading is suspended meanwhile.
        model: of diffusers, not compiled as a whole.
        lora: from `fit`.
        name: of the LoRA, new to the model.
        strength: what it adds is multiplied with this.
        undo: gets what undoes each change, also where this fails halfway.

    Returns:
        The parameters that it changed; `Changed.restore` undoes that. Low-rank updates are peft's to remove.

    Raises:
        ValueError: parameters to change that are offloaded, or DoRA for a part of the layers.
    """
    changed = _apply(model, lora, strength, undo)
    if lora.updates:
        undo.callback(Before(model).restore, name)
        _inject(pipe, model, lora, name, strength)
    return changed


def free_name(models: Iterable[Any]) -> str:
    """A name for a LoRA that no model has yet: default_0, default_1, ..."""
    taken = {name for model in models for name in getattr(model, "peft_config", {})}
    return next(name for i in range(len(taken) + 1) if (name := f"default_{i}") not in taken)


def peft_settings(updates: dict[str, LowRank], layers: Iterable[str]) -> dict[str, Any]:
    """Settings for `peft.LoraConfig` that give each layer its own rank and scale, in any version of peft.

    Args:
        updates: by the name of the layer.
        layers: all names in the model; peft finds its targets among them.

    Raises:
        ValueError: DoRA for a part of the layers.
    """
    ranks = {layer: update.rank for layer, update in updates.items()}
    alphas = {layer: _whole(update.scale * update.rank) for layer, update in updates.items()}
    (rank, _), (alpha, _) = Counter(ranks.values()).most_common(1)[0], Counter(alphas.values()).most_common(1)[0]
    settings: dict[str, Any] = {
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": _targets(updates, layers),
        # With ^ the name of a layer is all of a name, not the end of one.
        "rank_pattern": {f"^{re.escape(layer)}": r for layer, r in ranks.items() if r != rank},
        "alpha_pattern": {f"^{re.escape(layer)}": a for layer, a in alphas.items() if a != alpha},
    }
    magnitudes = [layer for layer, update in updates.items() if update.magnitude is not None]
    if magnitudes and len(magnitudes) < len(updates):
        raise ValueError(
            f"a DoRA must have a magnitude for each layer, but this has {len(magnitudes)} for {len(updates)} layers"
        )
    return settings | ({"use_dora": True} if magnitudes else {})


def peft_weights(updates: dict[str, LowRank]) -> dict[str, torch.Tensor]:
    """The matrices of a LoRA under peft's names."""
    weights: dict[str, torch.Tensor] = {}
    for layer, update in updates.items():
        weights |= {f"{layer}.lora_A.weight": update.down, f"{layer}.lora_B.weight": update.up.contiguous()}
        if update.magnitude is not None:
            weights[f"{layer}.lora_magnitude_vector"] = update.magnitude
    return weights


def _apply(model: torch.nn.Module, lora: Renamed, strength: float, undo: ExitStack) -> list[Changed]:
    parameters, changed = parameters_of(model), list[Changed]()
    wanted = [(layer, difference) for layer, found in lora.differences.items() for difference in found]
    places = [parameters[parameter_name(layer, difference.parameter, parameters)] for layer, difference in wanted]
    if any(place.is_meta for place in places):
        raise ValueError("the LoRA changes norms or biases, which are offloaded; load it before you enable offloading")
    with torch.no_grad():
        for place, (_, difference) in zip(places, wanted, strict=True):
            changed.append(Changed(place, place.detach().clone()))
            undo.callback(changed[-1].restore)
            value, before = difference.value.to(place.device).double().reshape(place.shape), place.double()
            place.copy_(before + strength * (value - before if difference.replaces else value))
    return changed


def _inject(pipe: Any, model: Any, lora: Renamed, name: str, strength: float) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    tuned = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    active = list(dict.fromkeys(adapter for module in tuned for adapter in module.active_adapters))
    settings = peft_settings(lora.updates, layers_of(model))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several LoRAs are what is asked for
        model.load_lora_adapter(
            peft_weights(lora.updates),
            prefix=None,
            adapter_name=name,
            metadata=settings,
            _pipeline=pipe if hasattr(pipe, "components") else None,
            # Without values first, which a DoRA takes from the layers.
            low_cpu_mem_usage="use_dora" not in settings,
        )
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.set_adapter([*active, name])
            module.set_scale(name, strength)  # type: ignore[attr-defined]
            _cast_beside_float8(module, name)


def _cast_beside_float8(module: Any, name: str) -> None:
    """Give the matrices beside a layer that is stored in float8 the dtype that the layer computes in."""
    base = module.get_base_layer()
    weight = getattr(base, "weight", None)
    if not isinstance(weight, torch.Tensor) or not weight.dtype.is_floating_point or weight.dtype.itemsize > 1:
        return
    hooks = getattr(getattr(base, "_diffusers_hook", None), "hooks", {})
    dtype = next((hook.compute_dtype for hook in hooks.values() if hasattr(hook, "compute_dtype")), torch.bfloat16)
    for matrices in (module.lora_A, module.lora_B):
        if name in matrices:
            matrices[name].to(dtype)


def _targets(updates: Iterable[str], layers: Iterable[str]) -> list[str] | str:
    """The layers as a list, which peft takes for ends of names, or as an expression where an end is ambiguous."""
    targets = list(updates)
    ends = tuple(f".{target}" for target in targets)
    if any(layer.endswith(ends) for layer in set(layers) - set(targets)):
        return "|".join(map(re.escape, targets))
    return targets


def _whole(number: float) -> float:
    return int(number) if number == int(number) else number
