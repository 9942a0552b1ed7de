"""What is in a LoRA file, whoever wrote it: low-rank updates and differences, by the names of layers in the file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

CONFIG = "lora_adapter_metadata"  # the key of peft's settings in a header of diffusers
PEFT_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"  # as peft names them, in one folder
PEFT = "base_model.model."  # what names in files of peft begin with
_PREFIX = re.compile(r"(?:base_model\.model\.|(?:transformer|transformer_2|transformer_ref|connectors)\.)+")
_UPDATE = re.compile(
    r"(.+?)\.(?:lora_(A|B|down|up)|lora\.(down|up))(?:\.(?!weight$|bias$)([^.]+))?(?:\.(weight|bias))?"
)
_MAGNITUDE = re.compile(r"(.+?)\.lora_magnitude_vector(?:\.(?!weight$)([^.]+))?(?:\.weight)?")
# What replaces or changes a parameter: ending -> (parameter, whether it replaces it).
_DIFFERENCES = {
    ".diff": ("weight", False),
    ".diff_b": ("bias", False),
    ".set_weight": ("weight", True),
    ".w_norm": ("weight", False),
    ".b_norm": ("bias", False),
}
_OTHER_METHODS = {
    "lokr_": "LoKr",
    "hada_": "LoHa",
    "oft_": "OFT",
    "lora_mid": "a LoRA with a third, Tucker matrix",
    "dora_scale": "a DoRA in the form of LyCORIS, which leaves open what its scale is measured over",
    "reshape_weight": "a LoRA that changes the shape of layers",
    "glora": "GLoRA",
}


@dataclass
class Update:
    """The low-rank update of a layer, which adds alpha / rank * up @ down to its weight.

    Attributes:
        down: [rank, in]. up: [out, rank]. For convolutions there are more dimensions.
        alpha: the file's own; None where it says nothing.
        bias: [out], what is added to the layer's bias, before alpha / rank.
        magnitude: [out], of DoRA as peft has it.
    """

    down: torch.Tensor | None = None
    up: torch.Tensor | None = None
    alpha: float | None = None
    bias: torch.Tensor | None = None
    magnitude: torch.Tensor | None = None


@dataclass(frozen=True)
class Difference:
    """What a file adds to a parameter, or what replaces it.

    Attributes:
        parameter: "weight" or "bias".
        value: in the shape of the parameter. replaces: it is the new value, not a difference.
    """

    parameter: str
    value: torch.Tensor
    replaces: bool


@dataclass
class Stored:
    """The contents of a LoRA file.

    Attributes:
        updates, differences: by the name of the layer in the file.
        config: of peft, from the header or from the file beside it; empty where there is none.
        header: what else the file says of itself.
        default: peft's name of the LoRA stands in the names, as in the files of DiffSynth-Studio.
        unread: names that are no part of a LoRA.
    """

    updates: dict[str, Update] = field(default_factory=dict)
    differences: dict[str, list[Difference]] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    header: dict[str, str] = field(default_factory=dict)
    default: bool = False
    unread: list[str] = field(default_factory=list)

    @property
    def layers(self) -> list[str]:
        """The names of all layers in the file."""
        return list(dict.fromkeys([*self.updates, *self.differences]))

    @property
    def is_bare_peft(self) -> bool:
        """Whether peft wrote it, whose alpha is in a file beside it, and that file is missing."""
        known = self.config or any(update.alpha is not None for update in self.updates.values())
        return not known and any(name.startswith(PEFT) for name in self.updates)

    def part(self, prefixes: tuple[str, ...], beginning: bool) -> Stored:
        """The layers whose names begin with one of several prefixes, or those that do not."""
        return replace(
            self,
            updates={name: x for name, x in self.updates.items() if name.startswith(prefixes) == beginning},
            differences={name: x for name, x in self.differences.items() if name.startswith(prefixes) == beginning},
            unread=[name for name in self.unread if name.startswith(prefixes) == beginning],
        )


def experts_in(names: Iterable[str]) -> set[str]:
    """The transformers that names in a file begin with, such as "transformer_2"."""
    return {found[1] for name in names if (found := re.match(r"(transformer(?:_2|_ref)?)\.", name))}


def read_names(file: Path) -> tuple[list[str], dict[str, str]]:
    """The names in a file, and its header, without its weights.

    Raises:
        ValueError: not a file of safetensors.
    """
    try:
        with safe_open(file, "pt") as weights:
            return list(weights.keys()), dict(weights.metadata() or {})
    except SafetensorError as error:
        raise ValueError(f"{file} is not a safetensors file: {error}") from None


def read_stored(file: Path) -> Stored:
    """The contents of a LoRA file, on the CPU.

    Raises:
        ValueError: not a file of safetensors, not a LoRA, one with parts missing, or with several LoRAs.
        NotImplementedError: another method than LoRA.
    """
    names, header = read_names(file)
    check_is_lora(file, names)
    with safe_open(file, "pt") as weights:
        stored = _parsed({name: weights.get_tensor(name) for name in names}, file)
    stored.header, stored.config = header, _config(file, names, header)
    for name, update in stored.updates.items():
        if update.down is None or update.up is None:
            missing = [side for side, matrix in (("down (A)", update.down), ("up (B)", update.up)) if matrix is None]
            raise ValueError(f"{file} is incomplete: {name} lacks the matrix {' and '.join(missing)}; get it again")
        if update.down.shape[0] != update.up.shape[1]:
            raise ValueError(
                f"{file} cannot be used: the matrices of {name} are {list(update.down.shape)} and "
                f"{list(update.up.shape)}, which do not fit each other; get it again"
            )
    return stored


def check_is_lora(file: Path, names: list[str]) -> None:
    """Refuse a file without parts of a LoRA, and methods that are not LoRA.

    Raises:
        ValueError: no part of a LoRA.
        NotImplementedError: another method.
    """
    for part, method in _OTHER_METHODS.items():
        if found := [name for name in names if part in name]:
            raise NotImplementedError(
                f"{file} is {method}, as its {found[0]} shows; vidsparse loads LoRAs alone: merge it into the weights "
                "of the model with the tool that made it, or extract a LoRA from it"
            )
    if not any(_UPDATE.fullmatch(name) or name.endswith(tuple(_DIFFERENCES)) for name in names):
        raise ValueError(f"{file} is not a LoRA: its weights are called {', '.join(names[:3])}, ...")


def _parsed(weights: Mapping[str, torch.Tensor], file: Path) -> Stored:
    stored, named = Stored(), set()
    for name, weight in weights.items():
        ending = f".{name.rsplit('.', 1)[-1]}"
        if found := _UPDATE.fullmatch(name):
            update = stored.updates.setdefault(found[1], Update())
            named.add(found[4])
            is_down = (found[2] or found[3]) in ("A", "down")
            if found[5] != "bias":
                setattr(update, "down" if is_down else "up", weight)
            elif is_down:
                stored.unread.append(name)
            else:
                update.bias = weight
        elif found := _MAGNITUDE.fullmatch(name):
            stored.updates.setdefault(found[1], Update()).magnitude = weight
        elif ending in _DIFFERENCES:
            parameter, replaces = _DIFFERENCES[ending]
            difference = Difference(parameter, weight, replaces)
            stored.differences.setdefault(name.removesuffix(ending), []).append(difference)
        elif ending != ".alpha":
            stored.unread.append(name)
    for name, weight in weights.items():
        if name.endswith(".alpha"):
            update_of = stored.updates.get(name.removesuffix(".alpha"))
            if update_of is None:
                continue  # beside a difference it says nothing
            update_of.alpha = float(weight)
    if len(named) > 1:
        raise ValueError(
            f"{file} holds several LoRAs, {', '.join(sorted(map(str, named)))}; write each to a file of its own"
        )
    stored.default = named not in (set(), {None})
    return stored


def _config(file: Path, names: list[str], header: Mapping[str, str]) -> dict[str, Any]:
    """The settings of peft: in the header, as diffusers writes them, or beside the file, as peft does."""
    text, beside = header.get(CONFIG), file.with_name(CONFIG_FILE)
    try:
        if text is not None:
            config = {_PREFIX.sub("", name, count=1): value for name, value in json.loads(text).items()}
        elif beside.is_file() and any(name.startswith(PEFT) for name in names):
            config = json.loads(beside.read_text(encoding="utf-8"))
        else:
            return {}
    except (ValueError, AttributeError) as error:
        raise ValueError(
            f"{file if text is not None else beside} holds settings that cannot be read: {error}"
        ) from None
    return dict(config)


def scale_of(config: Mapping[str, Any], layer: str, rank: int, alpha: float | None) -> float:
    """What the product of a layer's matrices is multiplied with.

    Args:
        config: of peft, or empty.
        layer: its name in diffusers.
        rank: of its matrices. alpha: of the file for this layer; None where the config decides.
    """
    if alpha is None and "lora_alpha" in config:
        patterns = config.get("alpha_pattern") or {}
        # As peft matches them: the end of a name, or with ^ all of it.
        matching = (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", layer))
        alpha = float(next(matching, config["lora_alpha"]))
    if alpha is None:
        return 1.0
    return float(alpha / (rank**0.5 if config.get("use_rslora") else rank))
