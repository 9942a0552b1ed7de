"""The file of a learned gate: its weights, and in the header the model that it was trained for."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from vidsparse.atomic import replacing
from vidsparse.grid import Tile, check_tile, is_whole
from vidsparse.patterns.gate_weights import POOLINGS, GateWeights

HEADER, VERSION = "vidsparse_gate", 1
ENDING = "_gate.safetensors"
TRAIN = "vidsparse finetune --train-gate"  # the command that writes the file


@dataclass(frozen=True)
class GateHeader:
    """What a gate was trained for.

    Attributes:
        transformer: its name in the pipeline, such as "transformer_2".
        model: class of diffusers. config: its settings as plain data, so that no other model takes the gate.
        layers, heads, head_dim: of the model.
        tile: sides of the tiles; None: the best ones of each grid.
        steps: of the training.
        base: name of the model.
        version: of the form of the file.
    """

    transformer: str
    model: str
    config: Mapping[str, Any] = field(repr=False)
    layers: int
    heads: int
    head_dim: int
    tile: Tile | None = None
    steps: int = 0
    base: str = ""
    version: int = VERSION

    def __post_init__(self) -> None:
        numbers = (self.layers, self.heads, self.head_dim, self.version)
        words = (self.transformer, self.model, self.base)
        if not all(is_whole(number, 1) for number in numbers) or not is_whole(self.steps, 0):
            raise ValueError(f"{self} needs whole numbers of at least 1 for layers, heads, head_dim and version")
        if not all(isinstance(word, str) for word in words) or not isinstance(self.config, Mapping):
            raise ValueError(f"{self} needs words for transformer, model and base, and an object for config")
        if self.tile is not None:
            check_tile(self.tile)


class Gate:
    """A gate that was read, with its weights on the devices where they were asked for.

    Attributes:
        path: of the file. header: what it was trained for.
    """

    def __init__(self, path: Path, header: GateHeader, layers: Sequence[GateWeights]):
        self.path, self.header = path, header
        self._layers = {("cpu", index): weights for index, weights in enumerate(layers)}

    def weights(self, layer: int, device: torch.device) -> GateWeights:
        """The weights of a layer on a device."""
        known = self._layers.get((str(device), layer))
        if known is None:
            with torch.inference_mode(False):  # a training may use them later
                known = GateWeights(*(x.to(device) for x in self._layers["cpu", layer]))
            self._layers[str(device), layer] = known
        return known


def gate_path(source: str, transformer: str) -> Path:
    """The file of a gate: the source itself, or in a folder that of a transformer.

    Raises:
        ValueError: there is none.
    """
    path = Path(source)
    if path.is_dir():
        found = path / gate_name(transformer)
        if not found.is_file():
            others = ", ".join(map(gate_name, trained_transformers(source))) or "no gate"
            raise ValueError(
                f"gate={source!r} has no {found.name}, it has {others}; train it with {TRAIN} --transformer "
                f"{transformer} --out {source}"
            )
        return found
    if not path.is_file():
        raise ValueError(f"gate={source!r} is neither a file nor a folder: give what {TRAIN} wrote, as gate=FOLDER")
    return path


def gate_name(transformer: str) -> str:
    """The file's name in the folder of a training."""
    return f"{transformer}{ENDING}"


def trained_transformers(source: str) -> list[str]:
    """The transformers that a folder has gates for; none for a file."""
    return sorted(path.name.removesuffix(ENDING) for path in Path(source).glob(f"*{ENDING}"))


def load_gate(source: str, transformer: str) -> Gate:
    """Read the gate of a transformer; once, as long as its file stays the same.

    Args:
        source: a file, or the folder of a training. transformer: its name in the pipeline.

    Raises:
        ValueError: no such file, not a gate, a damaged one, or one of a later version.
    """
    path = gate_path(source, transformer)
    state = os.stat(path)
    return _read(path, state.st_mtime_ns, state.st_size)


def save_gate(path: Path, header: GateHeader, layers: Sequence[GateWeights]) -> None:
    """Write a gate, whole or not at all.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    from safetensors.torch import save

    weights = {
        f"layers.{index}.{name}": tensor.detach().float().cpu().contiguous()
        for index, layer in enumerate(layers)
        for name, tensor in layer._asdict().items()
    }
    try:
        with replacing(path, suffix=".tmp") as temporary:
            # Bytes first: safetensors' own writer does not say OSError where the disk is full.
            temporary.write_bytes(save(weights, {"format": "pt", HEADER: json.dumps(asdict(header))}))
    except OSError as error:
        raise OSError(f"cannot write the gate {path}: {error.strerror or error}; an earlier one is whole") from error


@lru_cache(maxsize=8)
def _read(path: Path, modified: int, size: int) -> Gate:
    from safetensors import SafetensorError, safe_open  # patterns work where there is PyTorch alone

    del modified, size  # they only tell apart what a path held at different times
    try:
        with torch.inference_mode(False), safe_open(path, framework="pt") as file:
            header = _header(path, (file.metadata() or {}).get(HEADER))
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    except SafetensorError as error:
        raise ValueError(f"gate {path} is not a safetensors file: {error}") from None
    heads, head_dim = header.heads, header.head_dim
    layers = []
    for index in range(header.layers):
        query, key = (weights.pop(f"layers.{index}.{name}", torch.empty(0)) for name in GateWeights._fields)
        width = query.shape[1] if query.ndim == 3 else 0
        expected = {"query": (heads, width, head_dim), "key": (heads, width, POOLINGS * head_dim)}
        if not width or tuple(query.shape) != expected["query"] or tuple(key.shape) != expected["key"]:
            raise ValueError(
                f"gate {path} is damaged: layer {index} has shapes {tuple(query.shape)} and {tuple(key.shape)}, "
                f"expected (heads, width, head_dim) = ({heads}, width, {head_dim}) and ({heads}, width, "
                f"{POOLINGS * head_dim}); train it again with {TRAIN}"
            )
        if not (query.isfinite().all() and key.isfinite().all()):
            raise ValueError(f"gate {path} is damaged: layer {index} is not finite; train it again with {TRAIN}")
        layers.append(GateWeights(query.float(), key.float()))
    if weights:
        raise ValueError(f"gate {path} is damaged: it has {sorted(weights)[0]}, which no layer of its header has")
    return Gate(path, header, layers)


def _header(path: Path, text: str | None) -> GateHeader:
    if text is None:
        raise ValueError(f"{path} is not a learned gate: its header has no {HEADER}; give what {TRAIN} wrote")
    try:
        data = json.loads(text)
        version = data.get("version")
        if is_whole(version, VERSION + 1):
            raise ValueError(f"it is of version {version}, and this vidsparse reads up to {VERSION}; upgrade vidsparse")
        tile = data.get("tile")
        return GateHeader(**{**data, "tile": None if tile is None else tuple(tile)})
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"gate {path} has a header that cannot be read: {error}") from None
