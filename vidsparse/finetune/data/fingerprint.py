"""The fingerprint of a model, which names its encodings in the cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch

SAMPLE = 64  # values of each weight that are hashed: any training changes all values


def fingerprint(module: torch.nn.Module) -> str:
    """Hash of a model's configuration and of a sample of each weight: names, dtypes, shapes and values.

    A quantised weight that is a tensor of tensors, as torchao's are, counts as those inside it.
    """
    found = hashlib.sha256(json.dumps(_config(module.config), sort_keys=True, default=str).encode())
    for whole, value in module.state_dict().items():
        for name, weight in _plain(whole, value):
            flat = weight.detach().reshape(-1)
            found.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            found.update(flat[:: flat.numel() // SAMPLE + 1].cpu().double().numpy().tobytes())
    return found.hexdigest()


def _plain(name: str, value: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """A tensor by its name, or those that it is made of."""
    flatten = getattr(value, "__tensor_flatten__", None)
    if flatten is None:
        yield name, value
        return
    for inner in flatten()[0]:
        if isinstance(part := getattr(value, inner), torch.Tensor):
            yield from _plain(f"{name}.{type(value).__name__}.{inner}", part)


def _config(config: Any) -> dict[str, Any]:
    """A configuration without the place it was loaded from and the version that wrote it."""
    settings: Mapping[str, Any] = config if isinstance(config, Mapping) else config.to_dict()
    return {k: v for k, v in settings.items() if not k.startswith("_") and k != "transformers_version"}
