"""What `ProxyTokens` learns, in the attention layers of a transformer: put there, found, read and taken out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from vidsparse.corrections import Correction, ProxyTokens
from vidsparse.corrections.proxy_tokens import averaged
from vidsparse.corrections.proxy_weights import ProxyWeights
from vidsparse.grid import Tile
from vidsparse.runtime.registry import adapter_for

NAME = "proxies"  # of the module in an attention layer


def is_proxy(name: str) -> bool:
    """Whether a parameter of a transformer, by its name, is of learned proxies."""
    return f".{NAME}." in name


def add_proxies(transformer: torch.nn.Module, box: Tile) -> dict[str, ProxyWeights]:
    """Give each self-attention of a transformer proxies that learn; they begin as means, in float32.

    They move with the transformer, and its own processors ignore them. `save_lora` saves them. They are in the
    transformer's `state_dict`, as offloading needs it: `save_pretrained` writes them too, but `from_pretrained` passes
    over them with a warning, and a strict `load_state_dict` fails where only one side has them. So call
    `remove_proxies` before either.

    Args:
        transformer: of a supported class. box: sides (frames, height, width) in tokens.

    Returns:
        By the names of the attention layers.

    Raises:
        ValueError: it has proxies. NotImplementedError: the heads of its layers are unknown.
    """
    if proxies_in(transformer):
        raise ValueError(
            f"{type(transformer).__name__} has learned proxies already, and a layer takes one set: remove them with "
            "vidsparse.unload_lora first"
        )
    adapter, found = adapter_for(transformer), {}
    for name, attention in adapter.self_attentions(transformer).items():
        heads = adapter.heads(attention)
        if heads is None:
            raise NotImplementedError(
                f"{type(transformer).__name__} does not say how many heads {name} has, so its proxies cannot be "
                "learned; take ProxyTokens(learned=False)"
            )
        first = next(attention.parameters(), None)
        device = "cpu" if first is None or first.is_meta else first.device
        found[name] = ProxyWeights(heads, box).to(device)
    for name, proxies in found.items():
        setattr(transformer.get_submodule(name), NAME, proxies)
    return found


def proxies_in(transformer: torch.nn.Module) -> dict[str, ProxyWeights]:
    """The proxies of a transformer, by the names of its attention layers; empty where it has none."""
    found = {name: own_proxies(part) for name, part in transformer.named_modules()}
    return {name: proxies for name, proxies in found.items() if proxies is not None}


def own_proxies(attention: torch.nn.Module) -> ProxyWeights | None:
    """The proxies of an attention layer, or None."""
    found = getattr(attention, NAME, None)
    return found if isinstance(found, ProxyWeights) else None


def remove_proxies(transformer: torch.nn.Module) -> None:
    """Take the proxies out. Does nothing where there are none."""
    for name in proxies_in(transformer):
        delattr(transformer.get_submodule(name), NAME)


def learned_proxies(correction: Correction | None, own: ProxyWeights | None, name: str) -> ProxyWeights | None:
    """The proxies of an attention layer where the correction uses them; None where it has none.

    Args:
        correction: of the run. own: of the layer. name: of its transformer, for the error.

    Raises:
        ValueError: they are for other boxes.
    """
    if own is None or not (isinstance(correction, ProxyTokens) and correction.learned):
        return None
    if own.box != correction.box:
        raise ValueError(
            f"correction={correction!r} is for other boxes than those that {name} has learned, box={own.box}; take "
            f"{replace(correction, box=own.box)!r}"
        )
    return own


def check_proxies(correction: Correction | None, transformers: Mapping[str, torch.nn.Module]) -> None:
    """Refuse a correction whose proxies were not learned, or for other boxes.

    Raises:
        ValueError: no transformer has proxies, or one has those of other boxes.
    """
    if not (isinstance(correction, ProxyTokens) and correction.learned):
        return
    found = {name: proxies_in(transformer) for name, transformer in transformers.items()}
    if not any(found.values()):
        raise ValueError(
            f"correction={correction!r} needs proxies that were learned, and {' and '.join(found)} has none: load the "
            "LoRA that was trained with them (vidsparse.load_lora, --lora), train one with vidsparse finetune "
            f"--correction 'proxy-tokens learned=true', or take means, {averaged(correction)!r}"
        )
    for name, layers in found.items():
        for own in layers.values():
            learned_proxies(correction, own, name)
