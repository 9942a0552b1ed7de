"""Which layers of a transformer a LoRA changes, as peft reads it."""

from __future__ import annotations

import re

import torch

ALL = "all-linear"  # in peft: every linear layer


def matches(name: str, wanted: tuple[str, ...] | str) -> bool:
    """Whether a module's name ends in one of several names, or is what a regular expression matches as a whole."""
    if isinstance(wanted, str):
        return re.fullmatch(wanted, name) is not None
    return any(name == ending or name.endswith(f".{ending}") for ending in wanted)


def check_targets(
    transformer: torch.nn.Module,
    targets: tuple[str, ...] | str,
    exclude: tuple[str, ...] | str,
    untrained: str | None = None,
) -> None:
    """Refuse targets, or exceptions, that match no linear layer, and targets that would learn nothing.

    Args:
        transformer: of the training. targets, exclude: see `Settings`.
        untrained: a regular expression of layers that no call of the training reaches.

    Raises:
        ValueError: with the endings that exist.
    """
    linear = [name for name, module in transformer.named_modules() if isinstance(module, torch.nn.Linear)]
    ends = ", ".join(sorted({_end(name) for name in linear}))
    for label, wanted in (("targets", targets), ("exclude", exclude)):
        if isinstance(wanted, str) and wanted != ALL:
            try:
                found = any(matches(name, wanted) for name in linear)
            except re.error as error:
                raise ValueError(f"{label}={wanted!r} is no regular expression: {error}") from None
            if not found:
                raise ValueError(f"{label}={wanted!r} matches no linear layer; the layers end in {ends}")
        elif unknown := [t for t in wanted if not any(matches(name, (t,)) for name in linear)] if wanted != ALL else []:
            raise ValueError(f"{label} {', '.join(unknown)} do not exist; choose from {ends}")
    if targets != ALL and exclude and not any(matches(n, targets) and not matches(n, exclude) for n in linear):
        raise ValueError(f"exclude={exclude!r} leaves none of the targets; the layers end in {ends}")
    chosen = [name for name in linear if (targets == ALL or matches(name, targets)) and not matches(name, exclude)]
    if untrained is not None and (idle := [name for name in chosen if matches(name, untrained)]):
        raise ValueError(
            f"targets={targets!r} names layers that this training does not reach ({len(idle)}, such as {idle[0]}); "
            f"leave targets out, or give exclude={untrained!r}"
        )


def _end(name: str) -> str:
    """The last part of a module's name; if that is a number, the last two parts."""
    *before, last = name.split(".")
    return f"{before[-1]}.{last}" if last.isdigit() and before else last
