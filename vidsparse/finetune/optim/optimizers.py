"""Optimizers by name, and the groups of weights that have a rate of their own."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from vidsparse.runtime.proxies import is_proxy

BETAS = (0.9, 0.99)
PACKAGES = {"adamw": (), "adamw-8bit": ("bitsandbytes", "torchao"), "prodigy": ("prodigyopt",), "muon": ()}
OPTIMIZERS = tuple(PACKAGES)
# Learning rate of learned proxies by that of the LoRA: logits that begin at 0 have to reach about 1.
PROXY_RATE = 100.0


def check_optimizer(name: str) -> None:
    """Refuse an optimizer that does not exist or whose package is missing.

    Raises:
        ValueError: an unknown name.
        ImportError: no package that has it can be imported.
    """
    if name not in PACKAGES:
        raise ValueError(f"optimizer={name!r} is unknown; choose one of {', '.join(OPTIMIZERS)}")
    packages = PACKAGES[name]
    if packages and not any(map(find_spec, packages)):
        raise ImportError(f"optimizer={name!r} needs {' or '.join(packages)}: pip install {packages[0]}")


def check_optimizer_on(name: str, device: torch.device) -> None:
    """Refuse an optimizer that no installed package computes on a device.

    Raises:
        ValueError, ImportError: see `check_optimizer`; "adamw-8bit" needs torchao where there is no CUDA.
    """
    check_optimizer(name)
    if name == "adamw-8bit" and device.type != "cuda" and not find_spec("torchao"):
        raise ImportError(f"optimizer={name!r} needs torchao on {device.type}, without CUDA: pip install torchao")


def rate_groups(weights: Mapping[str, torch.nn.Parameter], ratio: float | None) -> list[dict[str, Any]]:
    """The weights of a LoRA as groups of an optimizer, each with the factor of its learning rate.

    Args:
        weights: by their names in the transformer.
        ratio: of the rate of the matrices B to that of all others, as in LoRA+ (Hayou et al., arXiv 2402.12354); None:
            all have the same. Learned proxies have `PROXY_RATE` times that of all others.
    """
    proxies = [name for name in weights if is_proxy(name)]
    second = [] if ratio is None else [name for name in weights if ".lora_B." in name]
    others = [name for name in weights if name not in {*proxies, *second}]
    groups = [(others, 1.0), (second, ratio), (proxies, PROXY_RATE)]
    return [{"params": [weights[name] for name in names], "factor": factor} for names, factor in groups if names]


def build_optimizer(
    name: str, groups: list[dict[str, Any]], rate: float, decay: float, device: torch.device
) -> torch.optim.Optimizer:
    """An optimizer by its name.

    Args:
        name: one of `OPTIMIZERS`. "adamw-8bit" is bitsandbytes' on a GPU where it is installed, else torchao's. "muon"
            takes matrices alone.
        groups: from `rate_groups`.
        rate: learning rate. "prodigy" finds its own and wants 1; "muon" has its update scaled to that of AdamW, so that
            rates of AdamW suit it.
        decay: of the weights.
        device: of the training.

    Raises:
        ValueError, ImportError: see `check_optimizer_on`.
    """
    check_optimizer_on(name, device)
    own: dict[str, Any] = {"lr": rate, "weight_decay": decay}
    if name == "muon":
        return torch.optim.Muon(groups, adjust_lr_fn="match_rms_adamw", **own)
    if name == "adamw":
        return torch.optim.AdamW(groups, betas=BETAS, **own)
    if name == "prodigy":
        module, cls = "prodigyopt", "Prodigy"
    elif device.type == "cuda" and find_spec("bitsandbytes"):
        module, cls = "bitsandbytes.optim", "AdamW8bit"
    else:
        module, cls = "torchao.optim", "AdamW8bit"
    made: torch.optim.Optimizer = getattr(import_module(module), cls)(groups, betas=BETAS, **own)
    return made


def know_states(name: str) -> None:
    """Import the package whose tensors the states of an optimizer hold: `torch.load` refuses kinds it never met."""
    if name == "adamw-8bit" and find_spec("torchao"):
        import_module("torchao.optim")


def set_rates(optimizer: Any, rate: float) -> None:
    """Give each group of an optimizer its learning rate."""
    for group in optimizer.param_groups:
        value = rate * group["factor"]
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(value)  # torchao compiles a step that reads it from there
        else:
            group["lr"] = value
